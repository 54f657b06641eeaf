from __future__ import annotations

import json

import pytest

from pelton import language
from pelton.errors import PackageInvalid, Unsupported

HELLO = [{"role": "user", "content": "hello"}]


def test_a_package_becomes_text_and_tokens(make_package):
    loaded = language.load(make_package())
    ids = loaded.encode_chat(HELLO)
    assert ids[0] == 1
    assert loaded.tokenizer.decode(ids, special=True) == loaded.template.render(HELLO)
    assert loaded.stop_tokens == {0, 2}
    stream = loaded.text_stream(["\n"])
    assert stream.push(loaded.encode_prompt("one\ntwo")) == "one"


def test_a_base_model_completes_but_does_not_chat(make_package):
    loaded = language.load(make_package(template=""))
    assert loaded.template is None
    assert loaded.encode_prompt("hello")
    with pytest.raises(Unsupported, match="use completions"):
        loaded.encode_chat(HELLO)


def test_a_prompt_begins_as_the_model_wants_it(make_package):
    loaded = language.load(make_package(bos=0, add_bos=True))
    assert loaded.encode_prompt("hello")[0] == 0
    assert loaded.encode_prompt("<|endoftext|>hello", special=True).count(0) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vocab_size": 3}, "do not belong together"),
        ({"vocab_size": 0}, "must be positive"),
        ({"eos": 99999}, "token 99999"),
        ({"surprise": 1}, "surprise"),
        ({"context": "long"}, "context"),
    ],
)
def test_a_card_that_cannot_be_right_is_refused(change, why, make_package):
    package = make_package()
    card = json.loads((package.folder / "language.json").read_text())
    (package.folder / "language.json").write_text(json.dumps(card | change))
    with pytest.raises(PackageInvalid, match=why):
        language.load(package)


def test_missing_files_are_named_with_the_mend(make_package):
    package = make_package()
    (package.folder / "tokenizer.json").unlink()
    with pytest.raises(PackageInvalid, match=r"tokenizer\.json .*add the model again"):
        language.load(package)
    (package.folder / "language.json").unlink()
    with pytest.raises(PackageInvalid, match=r"language\.json .*add the model again"):
        language.load(package)
