"""The commands of demo_bert.py from a YAML file:

    python central/habana_model_runner.py --framework pytorch --model bert --hb_config hb_configs/FILE.yaml

Flags of demo_bert.py may follow, and win over the file. The results/run.json of a run is such a file, too, and so are
the YAML files of Habana's release 1.1.1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from central.errors import BAD_REQUEST, BadRequest
from central.files import is_special
from central.launch import cli, run_record
from central.options import split_script_args


def main(argv: Sequence[str] | None = None) -> int:
    """Read the file and run what it asks for; the status to exit with."""
    # Without abbreviations, or --mode would be taken for --model.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--framework", choices=["pytorch"], required=True, help="pytorch is all there is")
    parser.add_argument("--model", choices=["bert"], required=True, help="bert is all there is")
    parser.add_argument("--hb_config", metavar="FILE", required=True, help="settings: YAML, or the run.json of a run")
    words, script_args = split_script_args(sys.argv[1:] if argv is None else argv)
    arguments, flags = parser.parse_known_args(words)
    try:
        request = run_record.read_request(load(arguments.hb_config), arguments.hb_config)
    except BadRequest as error:
        print(*(f"error: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return BAD_REQUEST
    words = [request.command, *request.words, *flags, "--", *(script_args or request.script_args)]
    return cli.main(words, request.variables, request.notes)


def load(path: str) -> object:
    """What a YAML file holds, numbers as the text they are written in: each option reads its own, and 010 is no 8.

    Raises BadRequest for a file that is no YAML, and for a key given twice, of which YAML takes the last.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if any(other.value == key.value for other in keys[: keys.index(key)]):
                    line = key.start_mark.line + 1
                    raise BadRequest(f"--hb_config {path}: the key {key.value} is given twice, again in line {line}")
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] in ("bool", "null", "merge")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    if is_special(path):
        raise BadRequest(f"--hb_config {path}: a device, pipe or socket; give a file")
    try:
        with open(path, "rb") as file:
            if tag := next((token for token in yaml.scan(file) if isinstance(token, yaml.TagToken)), None):
                line = tag.start_mark.line + 1
                raise BadRequest(f"--hb_config {path}: a tag in line {line}: take it out, values stand for themselves")
            file.seek(0)
            return yaml.load(file, Loader)
    except OSError as error:
        raise BadRequest(f"--hb_config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise BadRequest(f"--hb_config {path}: no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadRequest(f"--hb_config {path}: nested too deeply for a file of settings") from None


if __name__ == "__main__":
    sys.exit(main())
