"""Load a model with the head of a task, and its tokenizer: by name, Hub id, local folder or pre-training folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from central.finetuning.arguments import ModelArguments
from central.runtime.checkpoints import newest_checkpoint
from central.runtime.exits import BadRequest

# Short names of the launcher's `--model_name_or_path`, so that a script started by hand takes them too.
HUB_MODELS = {
    "base": "bert-base-uncased",
    "large": "bert-large-uncased-whole-word-masking",
    "tiny": "google/bert_uncased_L-2_H-128_A-2",
    "mini": "google/bert_uncased_L-4_H-256_A-4",
    "small": "google/bert_uncased_L-4_H-512_A-8",
    "medium": "google/bert_uncased_L-8_H-512_A-8",
}
# Model types that number positions from their padding id on, and so have fewer than the table has rows.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")
UNKNOWN_SHARE = 0.1  # more [UNK] than this in ordinary text: tokenizer and vocabulary do not belong together


def locate(name: str) -> str:
    """The folder or Hub id that `--model_name_or_path` means; the newest checkpoint of a pre-training folder."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")):
            raise BadRequest(f"--model_name_or_path {name}: no such folder")
        return HUB_MODELS.get(name, name)
    if (folder / "config.json").exists():
        return str(folder)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise BadRequest(
            f"--model_name_or_path {name}: neither a model (config.json, model.safetensors) nor a pre-training folder "
            "with a complete checkpoint"
        )
    return str(checkpoint)


def load_tokenizer(args: ModelArguments, name: str, say: Callable[[str], None]) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model."""
    source = args.tokenizer_name or name
    remedy = "name one with --tokenizer_name"
    folder = Path(source)
    if folder.is_dir() and not any((folder / f).exists() for f in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise BadRequest(
            f"{source}: a model without a tokenizer (no tokenizer.json, vocab.txt or vocab.json): {remedy}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **_hub(args))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadRequest(f"tokenizer of {source}: {_first_line(error)}: {remedy}") from None
    if not tokenizer.is_fast:
        raise BadRequest(f"tokenizer of {source}: has no fast version, which the scripts need: {remedy}")
    if tokenizer.pad_token_id is None:
        raise BadRequest(f"tokenizer of {source}: has no padding token, which batches need: {remedy}")
    if is_uncased(tokenizer):
        say("the tokenizer is uncased: it does not tell capitals from small letters")
    return tokenizer


def is_uncased(tokenizer) -> bool:
    return tokenizer.tokenize("ABC") == tokenizer.tokenize("abc")


def load_config(args: ModelArguments, name: str, max_seq_length: int = 0, **changes):
    """The configuration, checked for the sequence length asked for."""
    source = args.config_name or name
    try:
        config = AutoConfig.from_pretrained(source, **_hub(args), **changes)
    except (OSError, ValueError, KeyError) as error:
        raise BadRequest(
            f"model {source}: {_first_line(error)}: check the name and the network, or give a folder"
        ) from None
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        usable = positions - (config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0)
        if max_seq_length > usable:
            raise BadRequest(f"--max_seq_length {max_seq_length}: {source} has {usable} positions: at most {usable}")
    return config


def load_model(
    auto_class, args: ModelArguments, name: str, config, tokenizer, say: Callable[[str], None]
) -> PreTrainedModel:
    """The model with its head. Weights that were not in the checkpoint are listed; an encoder without is refused."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its own report of the same keys, in a table of 20 lines
    transformers.logging.disable_progress_bar()
    try:
        model, loaded = auto_class.from_pretrained(
            name,
            config=config,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
            output_loading_info=True,
            **_hub(args),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        remedy = (
            "" if args.ignore_mismatched_sizes else " (--ignore_mismatched_sizes makes a head of another size anew)"
        )
        raise BadRequest(f"model {name}: {_first_line(error)}{remedy}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing = sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})
    refuse_without_encoder(missing, model.base_model_prefix, name)
    if missing:
        say(f"made anew, as {name} does not have them: {', '.join(missing)}")
    if len(tokenizer) > config.vocab_size:
        raise BadRequest(
            f"the tokenizer has {len(tokenizer)} tokens, model {name} {config.vocab_size}: they do not belong together"
        )
    if getattr(config, "type_vocab_size", 2) < 2:  # RoBERTa, perhaps saved with a tokenizer that numbers segments
        tokenizer.model_input_names = [each for each in tokenizer.model_input_names if each != "token_type_ids"]
    return model


def refuse_without_encoder(missing: Sequence[str], prefix: str, name: str) -> None:
    """Only a head and the pooler may be new."""
    encoder = [key for key in missing if key.startswith(f"{prefix}.") and not key.startswith(f"{prefix}.pooler.")]
    if encoder:
        raise BadRequest(
            f"model {name}: the encoder did not load, {len(encoder)} weights are missing, such as "
            f"{', '.join(encoder[:3])}: this is not a checkpoint of the model that its config.json describes"
        )


def check_text(tokenizer, texts: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuse a tokenizer that turns ordinary text into [UNK].

    `texts` is a sample, `where(i)` names the place of the i-th.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    unknown = [ids.count(tokenizer.unk_token_id) for ids in encoded]
    total = sum(map(len, encoded))
    if tokenizer.unk_token_id is not None and sum(unknown) > UNKNOWN_SHARE * total:
        first = next(i for i, count in enumerate(unknown) if count)
        cased = any(text != text.lower() for text in texts)
        cause = (
            "the text has capitals and the tokenizer keeps them, but its vocabulary seems to have none: set "
            '"do_lower_case": true in its tokenizer_config.json'
            if cased and not is_uncased(tokenizer)
            else "tokenizer and text do not belong together"
        )
        raise BadRequest(
            f"{where(first)}: {100 * sum(unknown) / total:.0f} % of the tokens are {tokenizer.unk_token}: {cause}"
        )


def _hub(args: ModelArguments) -> dict:
    return {"cache_dir": args.cache_dir, "revision": args.model_revision, "token": args.token}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
