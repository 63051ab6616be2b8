"""Finds the model that an option names, or says what is wrong with the name."""

import os
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, PreTrainedConfig


def checkpoint_config(option: str, name: str | os.PathLike) -> PreTrainedConfig:
    """
    Returns the configuration of a model.

    Args:
        option (`str`): The option that names the model, for messages.
        name (`str` or `os.PathLike`): A folder, or a repository of the Hub.

    Raises:
        FileNotFoundError: If there is no such model; the message names the option, the path and the remedy.
    """
    if not Path(name).exists():
        try:
            validate_repo_id(os.fspath(name))
        except HFValidationError as error:
            raise FileNotFoundError(
                f"{option}={name} is neither a folder nor a name on the Hub (owner/name); paths are relative to "
                f"{Path.cwd()}."
            ) from error
    elif not Path(name, "config.json").is_file():
        raise FileNotFoundError(
            f"{option}={name} is not the folder of a model: it has no config.json. Pass a folder that save_pretrained "
            "or train.py has written."
        )
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"{option}={name} is neither a folder in {Path.cwd()} nor a model that can be loaded from the Hub "
            f"({reason}). Correct the path; for the Hub check the name and the connection, and log in for a private "
            "model (hf auth login)."
        ) from error
