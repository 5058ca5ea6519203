import json

import pytest

from glassformer.generation import GenerationConfig
from glassformer.models import AutoModelForCausalLM
from glassformer.models.safetensors_file import WeightsError
from tests.unit.models.families import config_of


def test_a_file_with_what_others_write(tmp_path):
    settings = {
        "_from_model_config": True,
        "num_beams": 4,
        "early_stopping": True,
        "eos_token_id": [2, 3],
        "temperature": 0.6,
        "top_k": 50,
        "typical_p": 1.0,
        "diversity_penalty": 0.0,
        "pad_token_id": None,
        "transformers_version": "4.40.0",
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    config = GenerationConfig.from_pretrained(tmp_path, max_length=9)
    assert config == GenerationConfig(
        num_beams=4, early_stopping=True, eos_token_id=[2, 3], max_length=9
    )
    assert (config.stop_tokens, config.fill_token) == ([2, 3], 2)
    # What the file says about sampling holds where there is some.
    sampling = GenerationConfig.from_pretrained(tmp_path, do_sample=True, temperature=0.5)
    assert (sampling.temperature, sampling.top_k) == (0.5, 50)


def test_zero_of_top_k_is_all_and_what_is_missing_is_told(tmp_path):
    config = GenerationConfig.from_dict({"do_sample": True, "top_k": 0})
    assert config.top_k is None
    with pytest.warns(UserWarning, match="left out: num_beam_groups, diversity_penalty"):
        GenerationConfig.from_dict({"num_beam_groups": 2, "diversity_penalty": 0.5})
    with pytest.raises(WeightsError, match="generation_config.json: the file is missing"):
        GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="no setting num_beam;"):
        GenerationConfig.from_dict({}, num_beam=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"max_new_tokens": -1}, "max_new_tokens must not be negative, got -1"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"min_new_tokens": -2}, "min_new_tokens must not be negative"),
        ({"early_stopping": "always"}, "True, False or 'never', got 'always'"),
        ({"bad_words_ids": [[1], []]}, "at least one token"),
        ({"num_return_sequences": 2}, "more than num_beams=1 finds"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more than num_beams=2 finds"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**settings)


WRONG_IN_A_FILE = {
    '{"max_new_tokens": "20"}': "max_new_tokens must be int or null, got '20'",
    '{"max_length": 20.5}': "max_length must be int or null, got 20.5",
    '{"eos_token_id": "x"}': "eos_token_id must be int or list of int or null, got 'x'",
    '{"eos_token_id": [2, "x"]}': r"eos_token_id must be int or list of int .*, got \[2, 'x'\]",
    '{"pad_token_id": true}': "pad_token_id must be int or null, got True",
    '{"do_sample": "yes"}': "do_sample must be bool, got 'yes'",
    '{"temperature": [1]}': r"temperature must be float, got \[1\]",
    '{"early_stopping": "always"}': "early_stopping must be bool or 'never', got 'always'",
    '{"bad_words_ids": [3]}': r"bad_words_ids must be list of list of int or null, got \[3\]",
    '{"num_beams": 0}': "num_beams must be at least 1, got 0",
    '{"do_sample": true, "top_p": 1.5}': r"top_p must be in \[0, 1\], got 1.5",
    "[]": "not a JSON object but list",
    '"greedy"': "not a JSON object but str",
    '{"num_beams": 2': "not valid JSON .*; get the file again",
    '{"num_beams": 2, "num_beams": 3}': "not valid JSON .*twice: 'num_beams'",
    '{"temperature": NaN}': "not valid JSON .*NaN is no JSON number",
}


@pytest.mark.parametrize("text", WRONG_IN_A_FILE)
def test_a_file_that_is_wrong_is_told_in_a_line(text, tmp_path):
    """By the config, and when the model is loaded: later nobody would know which file said it."""
    AutoModelForCausalLM.from_config(config_of("gpt2")).save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    for load in (GenerationConfig, AutoModelForCausalLM):
        with pytest.raises(WeightsError, match=f"^{path}: {WRONG_IN_A_FILE[text]}") as caught:
            load.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
    path.unlink()
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_what_is_wrong_is_the_files_or_the_callers(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"num_beams": 2}')
    with pytest.raises(ValueError, match="^num_beams must be at least 1, got 0"):
        GenerationConfig.from_pretrained(tmp_path, num_beams=0)
