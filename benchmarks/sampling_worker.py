"""Other packages' models, one token at a time: a process that `sampling_peers.py` starts in their environment.

Requests and answers are lines of JSON. Between two requests it waits. It ends with its input.

    {"do": "build", "name": N, "peer": P, ...}   {"parameters": 25460224}
    {"do": "token", "name": N, "repeats": 4}     {"seconds": 0.81}
    {"do": "forget"}                             {}
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

VOCAB_SIZE = 259
TOLERANCE = 1e-3

Token = Callable[[], object]
"""Computes the logits of one more token."""


def perceiver_ar_pytorch(context: int, latents: int, dim: int, depth: int, heads: int) -> tuple[nn.Module, Token]:
    """A full forward pass over the context."""
    from perceiver_ar_pytorch import PerceiverAR  # pyright: ignore[reportMissingImports]

    size = {"dim": dim, "depth": depth, "heads": heads, "dim_head": dim // heads}
    model = PerceiverAR(num_tokens=VOCAB_SIZE, max_seq_len=context, cross_attn_seq_len=context - latents, **size).eval()
    tokens = torch.randint(VOCAB_SIZE, (1, context))
    return model, lambda: model(tokens)


def x_transformers(context: int, latents: int, dim: int, depth: int, heads: int) -> tuple[nn.Module, Token]:
    """A step after `context - 1` tokens; its sampler's own step, which embeds all tokens again, is slower."""
    from x_transformers import Decoder, TransformerWrapper  # pyright: ignore[reportMissingImports]
    from x_transformers.attend import Intermediates  # pyright: ignore[reportMissingImports]
    from x_transformers.x_transformers import LayerIntermediates  # pyright: ignore[reportMissingImports]

    del latents
    size = {"dim": dim, "depth": depth, "heads": heads, "attn_dim_head": dim // heads}
    decoder = Decoder(attn_flash=True, rotary_pos_emb=True, **size)
    model = TransformerWrapper(
        num_tokens=VOCAB_SIZE, max_seq_len=context, use_abs_pos_emb=False, attn_layers=decoder
    ).eval()

    def step(token: Tensor, cache: object) -> Tensor:
        return model(token, cache=cache, input_not_include_cache=True, return_intermediates=True)[0]

    tokens = torch.randint(VOCAB_SIZE, (1, 33))
    _, prompt = model(tokens[:, :-1], return_intermediates=True)
    if not torch.allclose(step(tokens[:, -1:], prompt), model(tokens)[:, -1:], atol=TOLERANCE):
        raise RuntimeError("its step from kept keys and values is not its forward pass")

    def random() -> Tensor:
        return torch.randn(1, heads, context - 1, dim // heads)

    layers = [Intermediates(cached_kv=(random(), random()), layer_type="a") for _ in range(depth)]
    cache = LayerIntermediates(attn_intermediates=layers, cache_length=context - 1)
    return model, lambda: step(tokens[:, -1:], cache)


PEERS = {"perceiver-ar-pytorch": perceiver_ar_pytorch, "x-transformers": x_transformers}


def _median_seconds(token: Token, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        token()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.inference_mode()
def serve() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(int(sys.argv[1]))
    answers, sys.stdout = sys.stdout, sys.stderr  # what the packages print is no answer
    tokens: dict[str, Token] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {}
        try:
            match request.pop("do"):
                case "build":
                    name, peer = request.pop("name"), request.pop("peer")
                    model, token = PEERS[peer](**request)
                    token()  # what can't run fails here
                    tokens[name] = token
                    answer["parameters"] = sum(weight.numel() for weight in model.parameters())
                case "token":
                    answer["seconds"] = _median_seconds(tokens[request["name"]], request["repeats"])
                case "forget":
                    tokens.clear()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
