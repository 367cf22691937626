"""Chat templates: `tests/engine/chats/expected.json` is what transformers writes; Rust's tests compare with it."""

import json
import pathlib

import pytest

transformers = pytest.importorskip("transformers", minversion="5.17")

from jinja2.exceptions import TemplateError  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402

CHATS = pathlib.Path(__file__).parents[2] / "tests/engine/chats"


def write(tokenizer, chat, add_generation_prompt):
    """A chat by the tokenizer's template, or why that refuses it."""
    messages = [{"role": role, "content": content} for role, content in chat]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        return {"refused": str(error)}


def written():
    index = json.loads((CHATS / "index.json").read_text())
    texts = {}
    for name in index["templates"]:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), **index["special_tokens"]
        )
        tokenizer.chat_template = (CHATS / f"{name}.jinja").read_text()
        texts[name] = [[write(tokenizer, chat, prompt) for prompt in (False, True)] for chat in index["chats"]]
    return texts


def test_expected_texts_are_those_of_transformers():
    assert json.loads((CHATS / "expected.json").read_text()) == written()


if __name__ == "__main__":
    (CHATS / "expected.json").write_text(json.dumps(written(), ensure_ascii=False, indent=1) + "\n")
