"""The config file behind --config_json: its variant is the path of a resolved config."""

from jaxnlp.config import load_json


def get_config(path: str):
    return load_json(path)
