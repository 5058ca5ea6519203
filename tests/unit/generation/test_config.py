import json

import pytest

from glassformer.generation import GenerationConfig
from glassformer.models.safetensors_file import WeightsError


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
