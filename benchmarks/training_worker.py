"""One model in training: a process that `training.py` starts, in our environment or in the peers'.

Requests and answers are lines of JSON; it ends with its input. Each process trains one model, so that the most memory
it ever used is that of the model.

    {"do": "build", "who": W, ...}   {"parameters": 25460224, "libraries": 301000000}
    {"do": "step"}                   {"seconds": 0.81}
    {"do": "peak"}                   {"bytes": 1200000000}
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB_SIZE = 259

Loss = Callable[[Tensor], Tensor]
"""Mean loss of a row of tokens, one more than the model reads."""


def perceivers(context: int, latents: int, dim: int, depth: int, heads: int) -> tuple[nn.Module, Loss]:
    """Ours, with the loss of `perceivers train`."""
    from perceivers.data.batch import TokenBatch
    from perceivers.models.build import build
    from perceivers.models.perceiver_ar_config import PerceiverARConfig
    from perceivers.train.config import CrossEntropy
    from perceivers.train.objectives import objective_loss

    size = {"dim": dim, "depth": depth, "heads": heads, "cross_heads": heads, "dropout": 0.0}
    model = build(PerceiverARConfig(vocab_size=VOCAB_SIZE, max_seq_len=context, num_latents=latents, **size)).train()
    positions = torch.arange(1, context + 2)[None, :, None]

    def loss(tokens: Tensor) -> Tensor:
        batch = TokenBatch(tokens, positions, torch.tensor([context + 1]))
        return objective_loss(model, batch, CrossEntropy()).sum / latents

    return model, loss


def perceiver_ar_pytorch(
    context: int, latents: int, dim: int, depth: int, heads: int, heads_at_once: int = 2
) -> tuple[nn.Module, Loss]:
    """Its own loss; its cross-attend reads the context with two heads at a time unless told otherwise."""
    from perceiver_ar_pytorch import PerceiverAR  # pyright: ignore[reportMissingImports]

    size = {"dim": dim, "depth": depth, "heads": heads, "dim_head": dim // heads}
    size["perceive_max_heads_process"] = heads_at_once
    model = PerceiverAR(num_tokens=VOCAB_SIZE, max_seq_len=context, cross_attn_seq_len=context - latents, **size)
    return model.train(), lambda tokens: model(tokens[:, :-1], labels=tokens[:, 1:])


def x_transformers(context: int, latents: int, dim: int, depth: int, heads: int) -> tuple[nn.Module, Loss]:
    """A decoder with rotary positions and PyTorch's fused attention; every token predicts."""
    from x_transformers import Decoder, TransformerWrapper  # pyright: ignore[reportMissingImports]

    del latents
    size = {"dim": dim, "depth": depth, "heads": heads, "attn_dim_head": dim // heads}
    decoder = Decoder(attn_flash=True, rotary_pos_emb=True, **size)
    model = TransformerWrapper(num_tokens=VOCAB_SIZE, max_seq_len=context, use_abs_pos_emb=False, attn_layers=decoder)
    return model.train(), lambda tokens: F.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:])


WHO = {"perceivers": perceivers, "perceiver-ar-pytorch": perceiver_ar_pytorch, "x-transformers": x_transformers}


def resident(key: str) -> int:
    """Bytes: VmRSS, now, or VmHWM, the most so far; 0 where nobody says."""
    status = Path("/proc/self/status")
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return int(rows[key].split()[0]) * 1024 if key in rows else 0


class Training:
    """A model, AdamW, and one row after another."""

    def __init__(self, who: str, *, context: int, bfloat16: bool = False, compiled: bool = False, **size: int) -> None:
        self.libraries = resident("VmRSS")
        torch.manual_seed(0)
        self.bfloat16, self.context = bfloat16, context
        self.model, self.loss = WHO[who](context, **size)
        if compiled:
            self.model.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self) -> float:
        """Seconds of one update."""
        tokens = torch.randint(3, VOCAB_SIZE, (1, self.context + 1))
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(tokens)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def serve() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(int(sys.argv[1]))
    answers, sys.stdout = sys.stdout, sys.stderr  # what the packages print is no answer
    training: Training | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {}
        try:
            match request.pop("do"), training:
                case "build", _:
                    training = Training(**request)
                    parameters = sum(weight.numel() for weight in training.model.parameters())
                    answer = {"parameters": parameters, "libraries": training.libraries}
                case "step", Training():
                    answer["seconds"] = training.step()
                case "peak", Training():
                    answer["bytes"] = resident("VmHWM") - training.libraries
        except Exception as error:  # whoever asked raises it there; whatever fails here must be told
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
