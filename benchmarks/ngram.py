"""A trained model beside models that count, by piece: `python benchmarks/ngram.py RUN STORE [SPLIT]` (test).

As `perceivers evaluate RUN --baselines`, but for the 95 % intervals: by bootstrap over the folders that hold the
documents, which are pieces where several performances of a piece share one; over the documents, where there is only one
folder. For 12 million training events it takes 4 GB and some minutes.
"""

import sys
from pathlib import PurePath

import numpy as np

from perceivers.data.tokens import TokenStore
from perceivers.evaluate.baselines import score_baselines
from perceivers.evaluate.bootstrap import mean_with_interval, paired_bootstrap
from perceivers.evaluate.likelihood import score
from perceivers.generate.loaded import load


def main(run: str, store_path: str, split_name: str = "test") -> None:
    store = TokenStore.open(store_path)
    split = store.split(split_name)
    likelihood = score(load(run).model, split, precision="float32", progress=True)

    folders = [str(PurePath(name).parent) for name in split.names]
    folders = folders if len(set(folders)) > 1 else split.names
    index = np.unique(folders, return_inverse=True)[1]
    tokens = np.bincount(index, weights=likelihood.tokens)
    nats = {"model": likelihood.nats, **score_baselines(store, split_name)}
    sums = {name: np.bincount(index, weights=values) for name, values in nats.items()}
    print(f"{split_name}: {len(folders)} documents in {len(tokens)} groups, {int(tokens.sum()):,} events")
    for name, values in sums.items():
        print(f"{name:15} {mean_with_interval(values, tokens)} nats an event")
    for name, values in list(sums.items())[1:]:
        print(
            f"the model needs {paired_bootstrap(sums['model'], values, tokens).percent_fewer} % fewer than the {name}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
