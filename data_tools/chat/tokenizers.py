"""A tokenizer folder: found, read, named, fingerprinted, and written as a plain Hugging Face folder.

`tokenizer.json` is the truth where there is one; a folder with only `tokenizer.model` is converted and proved
(`sentencepiece_model`). transformers is not needed: its classes may rebuild what the file says.
"""

import difflib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.chat.sentencepiece_model import load_sentencepiece
from data_tools.errors import TokenizerError
from data_tools.fingerprints import fingerprint, hash_file

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer and what its folder says of it.

    `tokenizer` (tokenizers.Tokenizer) adds nothing by itself: no bos, no truncation, no padding. `names` are
    its special tokens by role (`eos_token` …), as chat templates see them. `begins_with_bos`: it puts bos before
    plain text. `json_text` is what `tokenizer.json` says or would say.
    """

    folder: Path
    tokenizer: Any
    names: Mapping[str, str]
    begins_with_bos: bool
    template: str | None
    json_text: str
    content_hash: str
    sentencepiece: Path | None
    config: Mapping[str, Any]


def load_tokenizer(folder: Path, named: Mapping[str, str | None]) -> LoadedTokenizer:
    """Load a folder's tokenizer; `named` are the special tokens that settings name, such as `eos_token`."""
    # Work is shared out among processes: threads of the library would take cores that nobody gave it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    if not folder.is_dir():
        raise TokenizerError(
            f"tokenizer: no such folder: got {folder}; expected a Hugging Face tokenizer folder"
        )
    config = _read_json(folder / "tokenizer_config.json")
    json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    names: dict[str, str] = {}
    sentencepiece: Path | None = None
    if json_file.is_file():
        json_text = json_file.read_text("utf-8")
        if not isinstance(_read_json(json_file).get("model"), dict):
            raise TokenizerError(
                f"{json_file}: not a tokenizer: got no `model` in it; expected the file that tokenizers saves"
            )
        tokenizer = Tokenizer.from_str(json_text)
    elif model_file.is_file():
        tokenizer, names = load_sentencepiece(model_file)
        json_text, sentencepiece = "", model_file
    else:
        raise TokenizerError(
            f"{folder}: no tokenizer: got {_listing(folder)}; expected tokenizer.json or a sentencepiece "
            "tokenizer.model; do: save one with transformers' save_pretrained"
        )
    names |= _names(folder, config)
    changed = _add_missing(tokenizer, config, names)
    for name, token in named.items():
        if token is not None:
            names[name] = _known(tokenizer, folder, name, token)
    changed |= _make_special(tokenizer, names)
    if sentencepiece is not None:
        _begin_with_bos(tokenizer, names, config)
    if changed or sentencepiece is not None:
        json_text = tokenizer.to_str(pretty=True)
    content = {"sentencepiece": hash_file(sentencepiece)} if sentencepiece else json.loads(json_text)
    begins_with_bos = _begins_with_bos(tokenizer, names, config)
    tokenizer.post_processor = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return LoadedTokenizer(
        folder=folder,
        tokenizer=tokenizer,
        names=names,
        begins_with_bos=begins_with_bos,
        template=_own_template(folder, config),
        json_text=json_text,
        content_hash=fingerprint(content),
        sentencepiece=model_file if model_file.is_file() else None,
        config=config,
    )


def save_tokenizer(loaded: LoadedTokenizer, folder: Path, template: str) -> None:
    """Write a folder from which plain `AutoTokenizer.from_pretrained` gives the same ids and template."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(loaded.json_text, "utf-8")
    kept = (
        "add_bos_token",
        "add_eos_token",
        "additional_special_tokens",
        "extra_special_tokens",
        "model_max_length",
    )
    config: dict[str, Any] = {key: loaded.config[key] for key in kept if loaded.config.get(key) is not None}
    if not (loaded.folder / "tokenizer.json").is_file() and "bos_token" in loaded.names:
        config.setdefault("add_bos_token", True)
    config |= {
        **loaded.names,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        # The class that takes tokenizer.json as it is; the named ones of transformers 5 rebuild it.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")
    if loaded.sentencepiece is not None:
        shutil.copyfile(loaded.sentencepiece, folder / "tokenizer.model")


def builtin_templates() -> list[str]:
    """Return the names of the chat templates that come with the program."""
    return sorted(path.stem for path in _TEMPLATES.glob("*.jinja"))


def choose_template(loaded: LoadedTokenizer, setting: str | None) -> tuple[str, str]:
    """Return (text, where it is from) of a chat template: the tokenizer's own, a built-in, or a file's."""
    names = builtin_templates()
    if setting is None:
        if loaded.template is None:
            raise TokenizerError(
                f"chat_template: the tokenizer has none of its own: got null, {loaded.folder}; "
                f"expected one of {', '.join(names)}, or a .jinja file; "
                "do: set chat_template in data.yaml, or give --chat-template to eval and chat; eval also "
                "takes `shards`, for that of the shards"
            )
        return loaded.template, f"chat template of {loaded.folder}"
    if setting in names:
        return (_TEMPLATES / f"{setting}.jinja").read_text("utf-8"), f"chat_template {setting}"
    path = Path(setting)
    if path.is_file():
        return path.read_text("utf-8"), f"chat_template {path}"
    close = difflib.get_close_matches(setting, names, 1)
    raise TokenizerError(
        f"chat_template: no such template: got {setting!r}; expected null, one of {', '.join(names)}, or a "
        ".jinja file" + (f"; did you mean {close[0]}?" if close else "")
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TokenizerError(
            f"{path}: not JSON: {error}; expected the file that transformers saves"
        ) from error
    if not isinstance(value, dict):
        raise TokenizerError(
            f"{path}: not an object: got {type(value).__name__}; expected the file that transformers saves"
        )
    return value


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder"


def _names(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    for source in (_read_json(folder / "special_tokens_map.json"), config):
        for name in _NAMES:
            token = source.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                names[name] = token
    return names


def _own_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    template = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise TokenizerError(
                f"{folder}: several chat templates and no default: got {', '.join(template)}; expected one "
                "named default; do: save the one you want as a .jinja file and set chat_template to it"
            )
        template = template["default"]
    return template if isinstance(template, str) else None


def _add_missing(tokenizer: Any, config: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    """Add the tokens that only the configuration names, as transformers does when it loads the folder."""
    from tokenizers import AddedToken

    changed = False
    decoder = config.get("added_tokens_decoder") or {}
    for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
        if tokenizer.token_to_id(entry["content"]) is None:
            flags = {
                key: entry.get(key, False)
                for key in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            tokenizer.add_tokens([AddedToken(entry["content"], **flags)])
            changed = True
    for token in names.values():
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
            changed = True
    return changed


def _known(tokenizer: Any, folder: Path, name: str, token: str) -> str:
    if tokenizer.token_to_id(token) is None:
        specials = [added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special]
        close = difflib.get_close_matches(token, specials, 1, cutoff=0.5)
        raise TokenizerError(
            f"{name}: not in the vocabulary of {folder}: got {token!r}; expected one of its special tokens, "
            f"such as {', '.join(specials[:8]) or 'none'}" + (f"; did you mean {close[0]}?" if close else "")
        )
    return token


def _make_special(tokenizer: Any, names: Mapping[str, str]) -> bool:
    from tokenizers import AddedToken

    known = {added.content: added for added in tokenizer.get_added_tokens_decoder().values()}
    changed = False
    for token in names.values():
        added = known.get(token) or AddedToken(token, normalized=False)
        if not added.special:
            added.special = True
            tokenizer.add_special_tokens([added])
            changed = True
    return changed


def _begins_with_bos(tokenizer: Any, names: Mapping[str, str], config: Mapping[str, Any]) -> bool:
    """Tell whether the tokenizer begins plain text with bos, by `add_bos_token` or as `tokenizer.json` has it."""
    bos = names.get("bos_token")
    if bos is None:
        return False
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    return bool(tokenizer.encode("a").ids[:1] == [tokenizer.token_to_id(bos)])


def _begin_with_bos(tokenizer: Any, names: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Let the saved tokenizer begin plain text (not chats) with bos, as models of this kind expect."""
    from tokenizers import processors

    bos = names.get("bos_token")
    if bos is not None and config.get("add_bos_token", True):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
