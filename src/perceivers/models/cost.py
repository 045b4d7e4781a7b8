"""What a model costs, from its config alone: parameters, floating-point operations, memory.

Perceiver AR's cost is written down here, without torch. That of other families is found by running them on tensors that
hold no numbers (`perceivers.models.trace`), which is imported when it is asked for.

Letters: M inputs, N latents, E channels of the input, C of the cross-attend, D of the latents, V token ids.
"""

from dataclasses import dataclass
from typing import NamedTuple

from perceivers.models.config import ModelConfig
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.hip_config import HiPConfig
from perceivers.models.perceiver_ar_config import LearnedQueries, MLPQueries, PerceiverARConfig, RotaryPositions
from perceivers.models.perceiver_config import PerceiverIOConfig

ALLOCATOR_SHARE = 1.25
"""Memory that a process takes for its activations over what they hold at their peak: freed pieces between them can't be
given back at once. Measured with glibc: 1.2 to 1.35."""

CONTEXT_WORK = 4
"""Arrays as large as the keys that exist only while the cross-attend's gradients are computed: of keys and values,
and of both together. Rotations are float32 in any case."""

TAKEN_WORK = 8
"""Arrays as large as `KEYS_AT_ONCE` keys where keys and values are taken by id on a CPU, part by part
(`perceivers.nn.partial`): they, their gradients, and both together."""

KEYS_AT_ONCE, LEAST_COLUMNS = 2**11, 2**9
"""Keys that are taken by id, and whose gradients are computed, at once (`perceivers.nn.partial`)."""

KEPT_SCORES = 2**26
"""On a CPU in bfloat16 attention keeps its probabilities for the backward pass if a layer has at most so many
(`perceivers.nn.attention`); the fused kernels never have them all."""

SCORES_WORK = 1
"""Arrays as large as the probabilities of one layer while its gradients are computed."""

MASK_BYTES = 7
"""Of a mask, which rows of different lengths need: a number and three truth values a pair."""

MOST_LOGITS = 2**25
"""Of a batch of tokens, that training has at once: 128 MB in float32."""

LOGITS_WORK = 5
"""Arrays as large as the logits that exist together, in float32: the logits, their exponentials, gradients."""


class Part(NamedTuple):
    """A part of a model."""

    name: str
    shape: str
    parameters: int


def parts(config: ModelConfig) -> list[Part]:
    """The parts of a model in the order in which data goes through them."""
    if isinstance(config, PerceiverARConfig):
        return _perceiver_ar_parts(config)
    from perceivers.models.trace import parameters

    shapes = _shapes(config)
    found = parameters(config).items()
    return [Part(name.replace("_", " "), shapes.get(name, ""), count) for name, count in found if count]


def _shapes(config: ECPConfig | PerceiverIOConfig | HiPConfig) -> dict[str, str]:
    """What the parts are, by the name of the module."""
    match config:
        case ECPConfig(dim=d, vocab_size=v):
            layers = f"{config.depth} of {config.heads} heads x {config.head_dim}, feed-forward {config.widening * d}"
            return {"token_embedding": f"{v} x {d}", "layers": layers, "norm": f"{d}", "logits": f"{d} -> {v}"}
        case PerceiverIOConfig(encoder=encoder):
            head = f"{encoder.cross_heads} heads, {config.input.dim} -> {encoder.dim}"
            return {
                "input": f"{config.input.tokens:,} tokens x {config.input.dim}",
                "latents": f"{encoder.num_latents:,} x {encoder.dim}",
                "cross_attends": f"{encoder.cross_attends} of {head}",
                "blocks": f"{encoder.blocks} of {encoder.depth} layers, {encoder.heads} heads, {encoder.dim} channels",
                "output": config.output.kind,
            }
        case HiPConfig():
            known = {m.name: m for data_set in config.data_sets for m in data_set.modalities}
            sizes = ", ".join(f"{m.name} {m.positions:,} x {m.channels}" for m in known.values())
            return {
                "modalities": sizes,
                "position_projections": f"{config.embed_dim} x {config.embed_dim}",
                "blocks": f"{len(config.groups)} of {', '.join(map(str, config.depths))} layers",
                "head": f"{config.dims[-1]} -> {config.embed_dim}",
                "label_head": f"{config.dims[config.processor]} -> {config.input_dim(config.processor)}",
            }


def _perceiver_ar_parts(config: PerceiverARConfig) -> list[Part]:
    e, d, v = config.embedding_dim, config.dim, config.vocab_size
    found = [Part("token embedding", f"{v} x {e}", v * e), _positions(config), _queries(config)]
    if config.latents_per_position > 1:
        offsets = config.latents_per_position * d
        found.append(Part("latent offsets", f"{config.latents_per_position} x {d}", offsets))
    cross = config.cross_dim // config.cross_heads
    cross_shape = f"{config.cross_heads} heads x {cross}, feed-forward {config.cross_widening * d}"
    if config.initial_cross_attend:
        found.append(Part("cross-attend", cross_shape, _cross_attend(config)))
    layer_shape = f"{config.heads} heads x {d // config.heads}, feed-forward {config.widening * d}"
    found.append(Part("latent stack", f"{config.depth} layers of {layer_shape}", config.depth * _layer(config)))
    if extra := len(config.extra_cross_attends):
        after = ", ".join(map(str, config.extra_cross_attends))
        found.append(
            Part("more cross-attends", f"after layers {after}, each {cross_shape}", extra * _cross_attend(config))
        )
    found.append(Part("output", f"norm, {d} -> {v}", _norm(d) + _linear(d, v)))
    return found


def count_parameters(config: ModelConfig) -> int:
    """Trained numbers of the model."""
    return sum(part.parameters for part in parts(config))


def _positions(config: PerceiverARConfig) -> Part:
    positions = config.positions
    if isinstance(positions, RotaryPositions):
        turned = f"{positions.channels(config.dim // config.heads)} of {config.dim // config.heads} channels"
        return Part("positions", f"rotary, {turned}", 0)
    rows = config.table_sizes
    shape = f"{positions.table} table, {' + '.join(map(str, rows))} x {config.embedding_dim}"
    return Part("positions", shape, sum(rows) * config.embedding_dim if positions.learned else 0)


def _queries(config: PerceiverARConfig) -> Part:
    e, d = config.embedding_dim, config.dim
    match config.queries:
        case LearnedQueries(shared=shared):
            rows = 1 if shared else config.num_latents
            return Part("queries", f"learned, {rows} x {d}", rows * d)
        case MLPQueries(layers=layers):
            return Part("queries", f"{e} -> {d}, {layers} layers of {d}", _linear(e, d) + layers * _linear(d, d))
        case _:
            return Part("queries", f"{e} -> {d}", _linear(e, d))


def _cross_attend(config: PerceiverARConfig) -> int:
    e, c, d = config.embedding_dim, config.cross_dim, config.dim
    attention = _linear(d, c) + _linear(e, 2 * c) + _linear(c, d)
    return 2 * _norm(d) + _norm(e) + attention + _feed_forward(d, config.cross_widening)


def _layer(config: PerceiverARConfig) -> int:
    d = config.dim
    return 2 * _norm(d) + _linear(d, d) + _linear(d, 2 * d) + _linear(d, d) + _feed_forward(d, config.widening)


def _feed_forward(dim: int, widening: int) -> int:
    return _linear(dim, widening * dim) + _linear(widening * dim, dim)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _norm(dim: int) -> int:
    return 2 * dim


def forward_flops(config: ModelConfig, *, training: bool = False) -> int:
    """Floating-point operations of one forward pass over a whole input: matrix products, two a multiply-add.

    A backward pass takes twice as many.

    Args:
        config: The model. Of Perceiver AR's attention only the visible pairs are counted, of others' all.
        training: Leave out positions and latents that are dropped in training.
    """
    if not isinstance(config, PerceiverARConfig):
        from perceivers.models import trace

        return trace.forward_flops(config, training=training)
    m, n = _lengths(config, training=training)
    e, c, d = config.embedding_dim, config.cross_dim, config.dim
    latents = n * config.latents_per_position
    projected = min(m, config.vocab_size) if isinstance(config.positions, RotaryPositions) else m  # keys and values
    cross_pairs = config.latents_per_position * (n * (m - n) + n * (n + 1) // 2)
    pairs = latents * (latents + config.latents_per_position) // 2
    cross = latents * (2 * c * d + 2 * config.cross_widening * d * d) + projected * 2 * e * c + cross_pairs * 2 * c
    layer = latents * (4 * d * d + 2 * config.widening * d * d) + pairs * 2 * d
    queries = 0 if isinstance(config.queries, LearnedQueries) else n * e * d
    if isinstance(config.queries, MLPQueries):
        queries += latents * config.queries.layers * d * d
    cross_attends = config.initial_cross_attend + len(config.extra_cross_attends)
    return 2 * (queries + cross_attends * cross + config.depth * layer + n * d * config.vocab_size)


def _lengths(config: PerceiverARConfig, *, training: bool) -> tuple[int, int]:
    """Inputs that are read, and latent positions."""
    prefix = config.max_prefix_len
    if training:
        prefix -= round(prefix * config.prefix_dropout)
    return prefix + config.num_latents, config.num_latents


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes at its peak."""

    weights: int
    """float32, and a copy in bfloat16 if products are computed in that."""
    gradients: int
    moments: int
    """Two of Adam for each weight."""
    activations: int
    """What the forward pass keeps for the backward pass, gradients on the way, and gaps between them."""
    logits: int
    """Logits, or other results, and what the loss makes of them."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.moments + self.activations + self.logits


def training_memory(
    config: ModelConfig, *, rows: int, bfloat16: bool, cpu: bool, recompute: bool = False
) -> TrainingMemory:
    """Estimate the memory of training with full-length rows.

    Args:
        config: The model; of a Perceiver AR the attention back end is taken to be `auto`.
        rows: Of a batch, on one device.
        bfloat16: Matrix products in bfloat16, the rest in float32.
        cpu: On a CPU; families other than Perceiver AR are taken to be there.
        recompute: Layers keep their inputs alone.
    """
    if not isinstance(config, PerceiverARConfig):
        return _traced_memory(config, rows=rows, bfloat16=bfloat16, recompute=recompute)
    size = 2 if bfloat16 else 4
    m, n = _lengths(config, training=True)
    e, c, d = config.embedding_dim, config.cross_dim, config.dim
    latents = rows * n * config.latents_per_position
    cross_attends = config.initial_cross_attend + len(config.extra_cross_attends)
    wide = 1 if config.activation == "relu" else 2  # the others keep what comes before and after the activation
    dropout = 2 * d if config.dropout else 0
    # Kept a latent and layer: two norms' inputs and outputs, queries, keys, values, what was read (twice), wide ones.
    layer = 10 * d + dropout + wide * config.widening * d
    cross = 6 * d + 3 * c + dropout + wide * config.cross_widening * d
    depth, reads = (1, min(1, cross_attends)) if recompute else (config.depth, cross_attends)
    kept = latents * size * (depth * layer + reads * cross + e + d)
    if recompute:
        kept += latents * size * (config.depth + cross_attends) * d
    if bfloat16 and cpu and (scores := _kept_scores(config.heads * latents * latents // rows, depth, read=latents * d)):
        kept += size * (scores - depth * latents * d)  # values are kept without keys
    scores = _kept_scores(config.cross_heads * latents * m, reads, read=latents * c) if bfloat16 and cpu else 0
    kept += size * scores
    context, context_work = _context_memory(config, rows=rows, size=size, cpu=cpu, scores=bool(scores))
    masks = rows * n * (n if cpu else m) * MASK_BYTES
    logits = min(rows * n * config.vocab_size, MOST_LOGITS) * 4 * LOGITS_WORK
    # Logits and latents are gone when the cross-attend's gradients are computed.
    activations = context + masks + max(kept, context_work - logits)
    parameters = count_parameters(config)
    # Kept in bfloat16: all but embeddings, and what projects keys and values of the context.
    copied = parameters - config.vocab_size * e - cross_attends * 2 * e * c if bfloat16 else 0
    return TrainingMemory(
        weights=parameters * 4 + copied * 2,
        gradients=parameters * 4,
        moments=parameters * 8,
        activations=round(ALLOCATOR_SHARE * activations),
        logits=logits,
    )


def _context_memory(config: PerceiverARConfig, *, rows: int, size: int, cpu: bool, scores: bool) -> tuple[int, int]:
    """Bytes that are kept of the context, and those that exist only while its gradients are computed.

    Args:
        config: The model.
        rows: Of a batch.
        size: Bytes of a number.
        cpu: On a CPU.
        scores: Cross-attends keep their probabilities.
    """
    m, n = _lengths(config, training=True)
    e, c, inputs = config.embedding_dim, config.cross_dim, rows * m
    cross_attends = config.initial_cross_attend + len(config.extra_cross_attends)
    by_id = isinstance(config.positions, RotaryPositions) and config.vocab_size < inputs
    table = config.vocab_size * 2 * c * size  # keys and values of each id
    if by_id and cpu and not scores and n < m:
        kept, work = table, 0
    elif by_id and cpu:
        kept, work = table + inputs * 2 * c * size, inputs * 2 * c * size
    else:  # keys after they turn, and values, as one tensor with keys from before, unless they are kept with the scores
        kept, work = inputs * (2 if scores else 3) * c * size, CONTEXT_WORK * inputs * c * 4
    kept *= cross_attends
    if not work:  # forward and backward have some columns at a time
        kept += TAKEN_WORK * rows * min(m, max(LEAST_COLUMNS, KEYS_AT_ONCE // rows)) * c * size
    if isinstance(config.positions, RotaryPositions):  # cosines and sines of the angles by which keys turn, in float32
        kept += inputs * 2 * 4 * config.positions.channels(c // config.cross_heads)
    kept += inputs * (8 if by_id else 4 * e)  # ids, or their embedding in float32
    return kept, work if cross_attends else 0


def _traced_memory(
    config: ECPConfig | PerceiverIOConfig | HiPConfig, *, rows: int, bfloat16: bool, recompute: bool
) -> TrainingMemory:
    """Copies of weights in bfloat16 count as activations, because autograd keeps them among these."""
    from perceivers.models.trace import kept

    activations, results = kept(config, rows=rows, bfloat16=bfloat16, recompute=recompute)
    parameters = count_parameters(config)
    return TrainingMemory(
        weights=parameters * 4,
        gradients=parameters * 4,
        moments=parameters * 8,
        activations=round(ALLOCATOR_SHARE * activations),
        logits=results * LOGITS_WORK,
    )


def _kept_scores(pairs: int, layers: int, *, read: int) -> int:
    """Probabilities that `layers` keep, and what works on them; what was read is then kept once, not twice."""
    return (layers + SCORES_WORK) * pairs - layers * read if pairs <= KEPT_SCORES and layers else 0
