"""Load a model with the head of a task, and its tokenizer: by name, Hub id, local folder or pre-training folder."""

import copy
import importlib.util
import json
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from central import resources
from central.finetuning import model_folder
from central.finetuning.arguments import UNKNOWN_SHARE, ModelArguments
from central.models import MODELS, SENTENCEPIECE_FILES, TOKENIZER_FILES, without_tokenizer
from central.runtime.checkpoints import check_content, is_ours, newest_checkpoint, read_state
from central.runtime.exits import BadRequest

# Model types that number positions from their padding id on, and so have fewer than the table has rows.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")
NO_CODE = {"trust_remote_code": False}  # without it transformers asks on standard input, and `yes |` would agree
# Settings of a config.json that would change what the trainer reads from a model.
PLAIN_OUTPUTS = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
WHOLE_LAYERS = {"chunk_size_feed_forward": 0}  # not in pieces that must divide a batch
IF_THERE = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
BOUNDS = {  # of numbers in a config.json
    "num_hidden_layers": (1, 1000),
    "hidden_size": (1, 2**20),
    "intermediate_size": (1, 2**22),
    "num_attention_heads": (1, 2**12),
    "vocab_size": (1, 2**26),
    "attention_probs_dropout_prob": (0, 0.99),
    "classifier_dropout": (0, 0.99),
    "hidden_dropout_prob": (0, 0.99),
    "initializer_range": (0, 10),
    "layer_norm_eps": (0, 0.1),
}
RELATIVE_POSITIONS = ("relative_key", "relative_key_query")  # BERT's, up to transformers 4
HEADS = re.compile("cls|class|head|output|predict|project|transform|layer_norm|score|logits|pooler|summary")
CASED_SHARE = 0.01  # of a vocabulary: an uncased one has no word with capitals
LONGEST_REASON = 300  # characters of a library's message
MOST_UNKNOWN = 0.5  # share of [UNK], emoji and signs included, that leaves no text to learn from
SAMPLED_CHARACTERS = 4096  # of each text that is looked at for [UNK]


def locate(name: str) -> str:
    """The folder or Hub id that `--model_name_or_path` means; the newest checkpoint of a pre-training folder."""
    found = _model_named(name)
    if Path(found).is_dir():
        model_folder.refuse_damaged(Path(found))
    if is_ours(Path(found)):
        try:
            check_content(Path(found), read_state(Path(found)), (".safetensors",))  # texts may be edited
        except (OSError, ValueError) as error:
            raise BadRequest(f"--model_name_or_path {name}: {error}") from error
    return found


def _model_named(name: str) -> str:
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists():
            raise BadRequest(f"--model_name_or_path {name}: no such folder")
        _refuse_missing("--model_name_or_path", name)
        # The launcher's short names, too, so that a script started by hand takes them.
        return MODELS[name].pretrained if name in MODELS else name
    if (folder / "config.json").exists():
        return str(folder)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise BadRequest(
            f"--model_name_or_path {name}: neither a model (config.json, model.safetensors) nor a pre-training folder "
            "with a complete checkpoint"
        )
    return str(checkpoint)


def _refuse_missing(flag: str, name: str | None) -> None:
    """Raise BadRequest for a path that leads nowhere: no id of the Hub begins like one."""
    if name and name.startswith((".", "/", "~")) and not Path(name).exists():
        raise BadRequest(f"{flag} {name}: no such folder")


def load_tokenizer(args: ModelArguments, name: str, say: Callable[[str], None]) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model."""
    source = args.tokenizer_name or name
    remedy = "name one with --tokenizer_name"
    folder = Path(source)
    _refuse_missing("--tokenizer_name", args.tokenizer_name)
    if args.tokenizer_name and folder.is_dir():
        model_folder.refuse_damaged(folder, has_weights=False)
    if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZER_FILES):
        if problems := without_tokenizer(source):
            raise BadRequest(problems)
        pieces = next(file for file in SENTENCEPIECE_FILES if (folder / file).exists())
        if importlib.util.find_spec("sentencepiece") is None:
            raise BadRequest(
                f"{folder / pieces}: is read by the package sentencepiece, which is not installed: pip install "
                f"sentencepiece protobuf, or {remedy}"
            )
    try:
        settings = get_tokenizer_config(source, **_hub(args))
        normalizer = _normalizer_settings(cached_file(source, "tokenizer.json", **_hub(args), **IF_THERE))
        given = _vocabulary(folder / "vocab.txt") | {k: v for k, v in normalizer.items() if k not in settings}
        tokenizer = AutoTokenizer.from_pretrained(source, **_hub(args), **given)
        lowers = getattr(tokenizer, "do_lower_case", False) and is_uncased(tokenizer)
        if lowers and "do_lower_case" not in settings | given and _tells_capitals(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(source, **_hub(args), **given, do_lower_case=False)
            say(
                f"{source}: no do_lower_case in its tokenizer_config.json, and its vocabulary has words with capitals: "
                "capitals are kept"
            )
    except BadRequest:
        raise
    except Exception as error:  # of a broken file the libraries raise what they happen to meet
        raise BadRequest(f"tokenizer of {source}: {_reason(error, 'tokenizer.json')}: {remedy}") from None
    if not tokenizer.is_fast:
        raise BadRequest(f"tokenizer of {source}: has no fast version, which the scripts need: {remedy}")
    if tokenizer.pad_token_id is None:
        raise BadRequest(f"tokenizer of {source}: has no padding token, which batches need: {remedy}")
    absent = _absent_marks(tokenizer, settings)
    if absent:
        raise BadRequest(
            f"tokenizer of {source}: its vocabulary has no {', '.join(absent)}: it is cut, or of another kind: {remedy}"
        )
    if is_uncased(tokenizer):
        say("the tokenizer is uncased: it does not tell capitals from small letters")
    return tokenizer


def _normalizer_settings(file: str | None) -> dict[str, bool | None]:
    """What a tokenizer.json does to letters; transformers 5 takes its own defaults instead where no setting says it."""
    normalizer = json.loads(Path(file).read_text(encoding="utf-8")).get("normalizer") if file else None
    if not normalizer or normalizer.get("type") != "BertNormalizer":
        return {}
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
    names["tokenize_chinese_chars"] = "handle_chinese_chars"
    return {name: normalizer[stored] for name, stored in names.items() if stored in normalizer}


def _vocabulary(file: Path) -> dict:
    """The argument with which transformers reads a vocab.txt that begins with a byte-order mark; else none."""
    if not file.is_file() or file.with_name("tokenizer.json").exists():
        return {}
    content = file.read_bytes()
    if not content.strip():
        raise BadRequest(f"{file}: is empty: copy it again from where the model comes from")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file}: is not UTF-8 text (byte {error.start}): copy it again") from None
    if not text.startswith("\ufeff"):
        return {}
    return {"vocab": {token: i for i, token in enumerate(re.split("\r\n|\r|\n", text[1:].rstrip("\r\n")))}}


def _absent_marks(tokenizer: PreTrainedTokenizerBase, settings: dict) -> list[str]:
    """Marks of a WordPiece tokenizer that no vocabulary has: transformers numbers them after the last token."""
    backend = cast(Any, tokenizer).backend_tokenizer
    if type(backend.model).__name__ != "WordPiece":
        return []
    decoder = settings.get("added_tokens_decoder") or {}
    known = {*backend.get_vocab(with_added_tokens=False), *(token["content"] for token in decoder.values())}
    marks = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token)
    return [mark for mark in marks if mark and mark not in known]


def _tells_capitals(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the vocabulary has words with capitals, special tokens apart."""
    words = [word for word in tokenizer.get_vocab() if not re.fullmatch(r"\[.*\]|<.*>", word)]
    return sum(word != word.lower() for word in words) > CASED_SHARE * len(words)


def is_uncased(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.tokenize("ABC") == tokenizer.tokenize("abc")


def load_config(args: ModelArguments, name: str, max_seq_length: int = 0, **changes: Any) -> Any:
    """The configuration, checked for the sequence length asked for."""
    source = args.config_name or name
    _refuse_missing("--config_name", args.config_name)
    if args.config_name and Path(source).is_dir():
        model_folder.refuse_damaged(Path(source), has_weights=False)
    try:
        config = AutoConfig.from_pretrained(source, **_hub(args), **PLAIN_OUTPUTS, **WHOLE_LAYERS, **changes)
    except Exception as error:  # see load_tokenizer
        remedy = "correct it" if Path(source).is_dir() else "check the name and the network, or give a folder"
        raise BadRequest(f"model {source}: {_reason(error, 'config.json')}: {remedy}") from None
    _check_config(config, source)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions > 0:  # -1 is no limit
        usable = positions - (config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0)
        if max_seq_length > usable:
            raise BadRequest(f"--max_seq_length {max_seq_length}: {source} has {usable} positions: at most {usable}")
    return config


def _check_config(config: Any, source: str) -> None:
    """Raise BadRequest for numbers that no model can have, and for what transformers would pass over in silence."""
    problems = []
    for name, (least, most) in BOUNDS.items():
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not least <= value <= most:
            is_short = isinstance(value, float) or abs(value) < 10**12
            shown = value if is_short else f"a number of {len(str(abs(value)))} digits"
            problems.append(f"model {source}: {name} in its config.json is {shown}: give {least} to {most}")
    if sorted(config.id2label) != list(range(len(config.id2label))):
        numbers = ", ".join(map(str, config.id2label))
        problems.append(
            f"model {source}: id2label in its config.json names the numbers {numbers}: they begin at 0, without gaps"
        )
    activation = getattr(config, "hidden_act", None)
    if isinstance(activation, str) and activation not in ACT2FN:
        problems.append(f"model {source}: hidden_act {activation!r} in its config.json is none that transformers knows")
    positions = getattr(config, "position_embedding_type", None)
    if positions in RELATIVE_POSITIONS:
        problems.append(
            f"model {source}: position_embedding_type {positions!r}: transformers 5 has absolute positions only and "
            "would pass over the others: take another model"
        )
    if getattr(config, "quantization_config", None):
        problems.append(
            f"model {source}: its weights are quantized (quantization_config): take the model that it was made from"
        )
    if "/" in str(getattr(config, "_attn_implementation", None)):
        problems.append(
            f"model {source}: attn_implementation {config._attn_implementation!r} in its config.json is code from the "
            "Hub, which is never run here: take it out"
        )
    if problems:
        raise BadRequest(problems)


def load_model(
    auto_class: Any,
    args: ModelArguments,
    name: str,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
) -> PreTrainedModel:
    """The model with its head, in fp32 whatever type its file has. What was not in the checkpoint is listed; an encoder
    that does not fit is refused."""
    count = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if count > config.vocab_size:
        raise BadRequest(
            f"the tokenizer has {count} tokens, model {name} {config.vocab_size}: they do not belong together"
        )
    _check_size(auto_class, config, name)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its own report of the same keys, in a table of 20 lines
    transformers.logging.disable_progress_bar()
    try:
        model, loaded = auto_class.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # transformers 5 would take that of the file
            key_mapping={r"^module\.": ""},  # of a model saved under torch's DataParallel
            ignore_mismatched_sizes=True,  # they are looked at below, by name
            output_loading_info=True,
            **_hub(args),
        )
    except Exception as error:  # see load_tokenizer
        raise BadRequest(f"model {name}: {_reason(error, 'weights')}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    # Else it would be saved under the old names of its file (module., gamma, beta), which a resume does not know.
    model._weight_conversions = None
    prefix = model.base_model_prefix
    refuse_other_shapes(loaded["mismatched_keys"], prefix, name, args.ignore_mismatched_sizes)
    missing = sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})
    refuse_without_encoder(missing, prefix, name)
    encoder = {key.removeprefix(f"{prefix}.").split(".")[0] for key in model.state_dict() if key.startswith(prefix)}
    unused = refuse_unused(loaded["unexpected_keys"], prefix, encoder, name)
    infinite = [key for key, weight in model.state_dict().items() if not weight.isfinite().all()]
    if infinite:
        raise BadRequest(
            f"model {name}: {len(infinite)} weights hold NaN or infinity, such as {infinite[0]}: its training "
            "diverged, or the file is damaged: take another copy"
        )
    for weight in model.parameters():  # a file may hold one for two, or be written over while it is in use
        weight.data = weight.data.clone()
    if missing:
        say(f"made anew, as {name} does not have them: {', '.join(missing)}")
    if unused:
        say(f"not taken from {name}, as the model has no place for them: {', '.join(unused)}")
    if getattr(config, "type_vocab_size", 2) < 2:  # RoBERTa, perhaps saved with a tokenizer that numbers segments
        tokenizer.model_input_names = [each for each in tokenizer.model_input_names if each != "token_type_ids"]
    return model


def _check_size(auto_class: Any, config: Any, name: str) -> None:
    """Refuse a configuration that cannot be built, or whose weights do not fit into memory, before either is tried."""
    try:
        with torch.device("meta"):
            size = 4 * auto_class.from_config(copy.deepcopy(config), **NO_CODE).num_parameters()
    except Exception as error:  # see load_tokenizer
        raise BadRequest(
            f"model {name}: cannot be built as its config.json says: {_reason(error, 'config.json')}"
        ) from None
    free = resources.available_memory()
    if free is not None and size > free:
        raise BadRequest(
            f"model {name}: its config.json describes {size / 4e9:.1f} billion weights, {size / 2**30:.1f} GiB in "
            f"fp32, and {free / 2**30:.1f} GiB of memory are free: take a smaller model"
        )


def refuse_other_shapes(mismatched: Iterable[tuple], prefix: str, name: str, heads_may_differ: bool) -> None:
    """`mismatched` holds (weight, shape in the file, shape of the model); those of the encoder never may."""
    mismatched = sorted(mismatched)
    encoder = [each for each in mismatched if each[0].startswith(f"{prefix}.")]
    refused = encoder or ([] if heads_may_differ else mismatched)
    if refused:
        shown = "; ".join(f"{key} is {list(there)}, the model has {list(here)}" for key, there, here in refused[:3])
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        remedy = (
            "its config.json describes another model"
            if encoder
            else "--ignore_mismatched_sizes makes a head of another size anew"
        )
        raise BadRequest(f"model {name}: {shown}{more}: {remedy}")


def refuse_without_encoder(missing: Sequence[str], prefix: str, name: str) -> None:
    """Only a head and the pooler may be new."""
    encoder = [key for key in missing if key.startswith(f"{prefix}.") and not key.startswith(f"{prefix}.pooler.")]
    if encoder:
        raise BadRequest(
            f"model {name}: the encoder did not load, {len(encoder)} weights are missing, such as "
            f"{', '.join(encoder[:3])}: this is not a checkpoint of the model that its config.json describes"
        )


def refuse_unused(unexpected: Sequence[str], prefix: str, encoder: set[str], name: str) -> list[str]:
    """Raise BadRequest for weights of the encoder that nobody takes; returns the others that are no head, to be named.

    `encoder` holds the names of the encoder's own parts, as a file without the prefix has them.
    """
    parts = {key: key.removeprefix(f"{prefix}.").split(".")[0] for key in unexpected}
    inside = [key for key in unexpected if key.startswith(f"{prefix}.") or parts[key] in encoder]
    inside = sorted(key for key in inside if parts[key] != "pooler" and not key.endswith("position_ids"))
    if inside:
        raise BadRequest(
            f"model {name}: {len(inside)} weights have no place in the encoder that its config.json describes, such as "
            f"{', '.join(inside[:3])}: it is a model of another form or size"
        )
    return sorted({part for part in parts.values() if not HEADS.search(part) and part not in encoder})


def check_text(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    where: Callable[[int], str],
    bound: float,
    say: Callable[[str], None],
) -> None:
    """Refuse a tokenizer that turns more than a share `bound` of the words with letters into [UNK], or most of all.

    `texts` is a sample, `where(i)` names the place of the i-th. Emoji and signs that the vocabulary lacks are said.
    """
    texts = [text[:SAMPLED_CHARACTERS] for text in texts]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    if tokenizer.unk_token_id is None:
        return
    rows = [
        [(text[begin:end], id == tokenizer.unk_token_id) for id, (begin, end) in zip(ids, offsets)]
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"])
    ]
    tokens = [token for row in rows for token in row]
    words = [(word, is_unknown) for word, is_unknown in tokens if any(map(str.isalpha, word))]
    share, share_of_words = (sum(unknown for _, unknown in each) / max(len(each), 1) for each in (tokens, words))
    first = next((i for i, row in enumerate(rows) if any(is_unknown for _, is_unknown in row)), 0)
    if share_of_words > bound or share > max(bound, MOST_UNKNOWN):
        cased = any(text != text.lower() for text in texts)
        cause = (
            "the text has capitals and the tokenizer keeps them, but its vocabulary seems to have none: set "
            '"do_lower_case": true in its tokenizer_config.json'
            if cased and not is_uncased(tokenizer)
            else f"tokenizer and text do not belong together; --max_unknown_share, {bound:g} here, allows more"
        )
        kind = "tokens with letters" if share_of_words > share else "tokens"
        worse = max(share_of_words, share)
        raise BadRequest(f"{where(first)}: {100 * worse:.0f} % of the {kind} are {tokenizer.unk_token}: {cause}")
    if share > UNKNOWN_SHARE:
        signs = list(dict.fromkeys(word for word, is_unknown in tokens if is_unknown))[:5]
        say(
            f"{where(first)}: {100 * share:.0f} % of the tokens are {tokenizer.unk_token}, most of them signs that the "
            f"vocabulary does not have ({' '.join(signs)}): the model cannot tell these apart"
        )


def _hub(args: ModelArguments) -> dict:
    return {"cache_dir": args.cache_dir, "revision": args.model_revision, "token": args.token, **NO_CODE}


def _reason(error: Exception, file: str) -> str:
    """What an error of the libraries over a file means, in one line."""
    if "trust_remote_code" in str(error):
        return "it needs Python code that comes with it (auto_map), which is never run here"
    if isinstance(error, SafetensorError):
        return f"its model.safetensors is damaged ({error}): copy it again"
    if isinstance(error, pickle.UnpicklingError | EOFError) or (isinstance(error, KeyError) and file == "weights"):
        return (
            "its pytorch_model.bin is damaged, or holds other things than weights, which are not loaded: copy it again"
        )
    if isinstance(error, KeyError):
        return f"{error} is missing in its {file}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
