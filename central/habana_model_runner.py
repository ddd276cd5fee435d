"""The commands of demo_bert.py from a YAML file:

    python central/habana_model_runner.py --framework pytorch --model bert --hb_config hb_configs/FILE.yaml

Flags of demo_bert.py may follow, and win over the file. The results/run.json of a run is such a file, too.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from central.errors import BAD_REQUEST, BadRequest
from central.launch import cli, run_record
from central.launch.options import split_script_args


def main(argv=None) -> int:
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
    return cli.main(words, request.variables)


def load(path):
    """What a YAML file holds."""
    import yaml

    try:
        with open(path) as file:
            return yaml.safe_load(file)
    except OSError as error:
        raise BadRequest(f"--hb_config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"--hb_config {path}: no YAML: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
