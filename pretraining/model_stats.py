"""What a model costs: floating-point operations of its sequences and memory of a training process."""

from central.models import parameter_count
from central.runtime.device import Device
from central.runtime.exits import BadRequest
from pretraining.batches import MicroBatch
from pretraining.kernels.choice import KERNELS
from pretraining.kernels.plain import flat_layout
from pretraining.modeling import BertConfig

BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and two moments
BYTES_TO_SAVE = 12  # per parameter: the copy of weights and moments while a checkpoint is written
PROCESS_BYTES = 600 << 20  # interpreter, torch, its libraries and its kernels


def sequence_flops(config: BertConfig, tokens: int, masked: float) -> float:
    """Forward and backward of one sequence of `tokens` real tokens, `masked` of them sent to the masked-LM head."""
    h, layers, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    dense = 4 * h * h + 2 * h * config.intermediate_size  # multiplications per token and layer
    encoder = layers * tokens * (2 * dense + 4 * tokens * h)
    return 3 * (encoder + masked * (2 * h * h + 2 * h * vocab) + 2 * h * h)


def batch_flops(config: BertConfig, micro_batch: MicroBatch) -> float:
    """Forward and backward of one micro-batch, counted over real tokens only."""
    ids, weights = micro_batch.sequence_ids, micro_batch.masked_weights
    if ids is not None and weights is not None:  # static layout: padding, several sequences a row, slots not used
        masked = float(weights.sum())
        lengths = [count for n in range(1, int(ids.max()) + 1) for count in ids.eq(n).sum(1).tolist() if count]
    else:
        masked, (_, filled) = len(micro_batch.masked_positions), flat_layout(micro_batch)
        lengths = list(filled[: len(micro_batch.next_sentence_labels)])  # without what fills the last tile
    return sum(sequence_flops(config, length, masked / len(lengths)) for length in lengths)


def count_parameters(config: BertConfig) -> int:
    """Those of a run, with the padding of the vocabulary."""
    return parameter_count({**vars(config), "vocab_size": config.padded_vocab_size})


def training_bytes(config: BertConfig, device: Device, micro_batch_size: int, seq_len: int, masked: int) -> int:
    """Estimated peak of one training process, for rows without padding and `masked` positions a row."""
    h, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    width = 2 if device.data_type == "bf16" else 4
    kernels = KERNELS[device.kernels]
    scores = heads * seq_len if kernels.keeps_scores else 0  # per token
    token = kernels.bytes_kept(width, h, config.intermediate_size, scores)
    tokens = micro_batch_size * seq_len
    logits = micro_batch_size * masked * config.padded_vocab_size * (width + 2)
    copies = device.operand_type.itemsize * count_parameters(config) if device.data_type == "bf16" else 0
    widest = tokens * width * (3 * config.intermediate_size + 2 * scores)  # temporaries of one layer
    gradient = 4 * config.padded_vocab_size * h  # of the word embedding, on its way into the sum
    saving = BYTES_TO_SAVE * count_parameters(config) if device.uses_host_memory else 0
    fixed = BYTES_PER_PARAMETER * count_parameters(config) + copies + gradient + saving
    return fixed + layers * tokens * token + widest + logits


def check_memory(
    config: BertConfig, device: Device, micro_batch_size: int, seq_len: int, masked: int, ranks: int, data_bytes: int
) -> int:
    """Estimated bytes of one process; BadRequest where they plainly do not fit, with the micro-batch that would.

    `ranks` is the number of processes that share the device's memory, `data_bytes` what each keeps of the shards.
    """
    beside, running = (data_bytes, PROCESS_BYTES) if device.uses_host_memory else (0, 0)
    needed = training_bytes(config, device, micro_batch_size, seq_len, masked) + beside
    available = device.available_memory()
    if available is None or needed <= available // ranks:
        return needed + running  # the process itself runs already
    fits = 0
    for size in range(1, micro_batch_size):
        if training_bytes(config, device, size, seq_len, masked) + beside > available // ranks:
            break
        fits = size
    remedy = f"a micro-batch of {fits} fits (raise --gradient_accumulation_steps)"
    if not fits and training_bytes(config, device, 1, seq_len, masked) <= available // ranks:
        remedy = (
            f"{_gib(beside)} GiB of it are shards kept in memory: make smaller ones (prepare.py hdf5 --num_shards N), "
            "or choose fewer ranks on this machine"
        )
    elif not fits:
        remedy = "not even a micro-batch of 1 fits: choose a smaller model, or fewer ranks on this machine"
    raise BadRequest(
        f"a micro-batch of {micro_batch_size} rows of {seq_len} tokens needs about {_gib(needed)} GiB per "
        f"process, {_gib(available // ranks)} GiB are free: {remedy}"
    )


def _gib(size: int) -> str:
    """Bytes in GiB; whole numbers, as a batch may be asked for that no float holds."""
    return f"{size // 2**30}.{size % 2**30 * 10 // 2**30}"
