"""Print a resolved config, or its differences from another config.

python -m experiments.config --config=configs/gpt/tiny.py --config.model.num_layers=8
python -m experiments.config --config=configs/gpt/tiny.py --against=runs/tiny/config.json
python -m experiments.config --config_json=runs/a/config.json --against=runs/b/config.json
"""

from absl import flags

from jaxnlp import cli, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local

CONFIG = cli.define_config()
AGAINST = flags.DEFINE_string(
    "against", None, "Another config: file.py, file.py:variant, file.json, or a run's folder."
)
JSON = flags.DEFINE_bool("json", False, "Print the config as JSON, in the form that --config_json reads.")


def main() -> None:
    from jaxnlp import config as configs

    if CONFIG.value is None:
        raise UserError("--config: not given; expected a config file, or --config_json=FILE")
    configs.check(CONFIG.value)
    if AGAINST.value is not None:
        path = local(AGAINST.value)
        spec = str(path / "config.json") if path.is_dir() else AGAINST.value
        differences = configs.diff(cli.load(spec), CONFIG.value)
        width = max((len(path) for path, _, _ in differences), default=0)
        for path, old, new in differences:
            print(f"{path:{width}}  {old!r} -> {new!r}")
        if not differences:
            print("no difference")
    elif JSON.value:
        print(strict_json.dumps(configs.to_dict(CONFIG.value), indent=2))
    else:
        for path, value in configs.flatten(CONFIG.value):
            print(f"{path} = {value!r}")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
