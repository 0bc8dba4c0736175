from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mars_core.metrics.identity import content_hash
from mars_core.training.recipe import Recipe
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig, read_study, require_full_paths, write_study

MINIMAL = "study: out\nmodel: some/model\ndata: {train: train.json}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path):
    config = read_study(written(tmp_path, MINIMAL))
    assert config.calibration.ranks == (8, 16, 32, 64)  # appendix G.2
    assert (config.recipe.learning_rate, config.recipe.batch_size, config.recipe.warmup_ratio) == (1e-5, 8, 0.1)  # G.1
    assert config.calibration.samples == 2**11
    assert config.calibration.reference == (16, 16)  # lower middle of the grid
    assert config.data.validation_samples == 500


def test_paths_are_relative_to_the_study_file(tmp_path):
    config = read_study(written(tmp_path, MINIMAL))
    assert config.study == str(tmp_path / "out")
    assert config.data.train == str(tmp_path / "train.json")
    assert config.model == "some/model"  # no such folder: a hub id


@pytest.mark.parametrize("study", ["/data/studies/my-study", "s3://bucket/studies/my-study/", "my-study"])
def test_a_study_has_a_short_name_for_timelines(study):
    """As Prefect fills it into the names of flow runs."""
    config = StudyConfig.model_validate({"study": study, "model": "some/model", "data": {"train": "train.json"}})
    assert f"calibrate {config.short_name}" == "calibrate my-study"


def test_a_model_folder_beside_the_file_is_that_folder(tmp_path):
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert read_study(written(tmp_path, MINIMAL)).model == str(tmp_path / "some" / "model")


def test_written_study_reads_back(tmp_path):
    config = read_study(written(tmp_path, MINIMAL + "calibration: {ranks: [2, 4], samples: 64}\n"))
    write_study(config, tmp_path / "again" / "study.yaml")
    assert read_study(tmp_path / "again" / "study.yaml") == config


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("family: {me: a}", r"family\.llm: Field required"),
        ("family: {me: a, llm: b, unused: ['(']}", r"unused: '\(' is no regular expression"),
        ("loading: {attn_implementation: fast}", r"loading\.attn_implementation: .*'fast'"),
        ("loading: {spread: true}\ndevice: cpu", r"loading\.spread is for GPUs, and device is cpu"),
        ("recipe: {learning_rate: 0}", r"recipe\.learning_rate.*greater than 0.*got 0"),
        (
            "recipe: {learningrate: 1}",
            r"recipe\.learningrate: there is no such key, did you mean recipe\.learning_rate\? `recipe` has learning_r",
        ),
        (
            "calibraton: {ranks: [2, 4]}",
            r"calibraton: there is no such key, did you mean calibration\? a study has ",
        ),
        ("epochs: 3", r"epochs: there is no such key, did you mean final\.epochs\?"),
        ("family: {me: a, llm: b, unusd: []}", r"family\.unusd: there is no such key, did you mean family\.unused\?"),
        ("recipe: {zzz: 1}", r"recipe\.zzz: there is no such key\. `recipe` has "),
        ("calibration: {ranks: [8]}", "at least 2 different ranks"),
        ("calibration: {ranks: [8, 8]}", "must not repeat"),
        ("calibration: {ranks: [0, 8]}", r"at least 2 different ranks above 0, got \[0, 8\]"),
        ("calibration: {ranks: {me: [0, 8, 16], llm: [0, 8]}}", r"at least 2 different ranks above 0, got \[0, 8\]"),
        ("calibration: {ranks: {me: [8, 16]}}", r"calibration\.ranks\.llm: Field required"),
        (
            "calibration: {ranks: {me: [8, 16], lm: [8, 16]}}",
            r"calibration\.ranks\.lm: .* mean calibration\.ranks\.llm",
        ),
        ("calibration: {ranks: 8}", r"calibration\.ranks: .*tuple, got 8"),
        ("calibration: {ranks: [8, a]}", r"calibration\.ranks\.1: .*integer.*got 'a'"),
        ("calibration: {learning_rates: [1e-4]}", r"calibration\.learning_rates: one learning rate alone, 0\.0001"),
        ("calibration: {learning_rates: [1e-4, 1.0e-4]}", r"calibration\.learning_rates: .*must not repeat"),
        ("calibration: {learning_rates: [1e-4, 2]}", r"above 0 and at most 1, got 2"),
        ("calibration: {learning_rates: [1e-4, .nan]}", r"above 0 and at most 1, got nan"),
        ("calibration: {learning_rates: often}", r"above 0 and at most 1, got 'often'"),
        ("calibration: {learning_rates: {me: [1e-4, 2e-4]}}", r"expected rates of me and llm, got me"),
        ("calibration: {learning_rates: {me: 1e-4, llm: 1e-4}}", r"one learning rate alone"),
        (
            "calibration: {learning_rates: auto}\nsearch: {law: paper}",
            r"search\.law: paper is for runs of one learning",
        ),
        ("fit: {eps: 1}", r"fit\.eps: .*less than 1, got 1"),
        ("calibration: {runs: two}", r"calibration\.runs: .*'one' or 'per_size', got 'two'"),
        ("calibration: {samples: 32, smallest_size: 64}", "smallest_size 64 is above samples 32"),
        ("search: {ranks: [0]}", "each module needs a rank above 0"),
        ("search: {ranks: {me: [8, 8], llm: [8]}}", "must not repeat"),
    ],
)
def test_bad_values_are_named(tmp_path, extra, message):
    with pytest.raises(ValueError, match=message):
        read_study(written(tmp_path, MINIMAL + extra + "\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "expected a mapping"), ("a: [", "not readable YAML"), ("study: x\n", "model: Field required")],
)
def test_files_that_are_no_studies(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_study(written(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="there is no study file"):
        read_study(tmp_path / "none.yaml")


def test_config_is_hashable():
    # Loaded data and models are cached by configuration.
    one = StudyConfig(study="s", model="m", data={"train": "t"})
    assert hash(one) == hash(StudyConfig(study="s", model="m", data={"train": "t"}))


def sections(schema):
    return [schema, *schema["$defs"].values()]


def test_every_field_of_the_form_has_one_type_and_a_description():
    for section in sections(StudyConfig.model_json_schema()):
        for name, field in section["properties"].items():
            kinds = field.get("anyOf", [])  # the Prefect UI shows tabs: only for a whole section that may be absent
            assert not kinds or any("$ref" in kind for kind in kinds), name
            assert "$ref" in field or field.get("description"), name
            assert "_" not in field.get("title", ""), name


def test_fields_emptied_in_the_form_count_as_absent():
    config = StudyConfig(study="/s", model="m", data={"train": "/t", "images": ""}, search={"ranks": []})
    assert config.data.images is None
    assert config.search.ranks is None


def test_workers_refuse_relative_paths():
    require_full_paths(StudyConfig(study="/s", model="some/hub-id", data={"train": "/t"}))
    with pytest.raises(ValueError, match=r"study = 's', data\.images = 'pictures'"):
        require_full_paths(StudyConfig(study="s", model="m", data={"train": "/t", "images": "pictures"}))


def test_a_family_that_was_left_empty_in_a_form_is_none(tmp_path):
    config = read_study(written(tmp_path, MINIMAL))
    for empty in ({}, {"me": "", "projector": [], "llm": "", "unused": []}):
        assert StudyConfig.model_validate(config.model_dump() | {"family": empty}) == config


@pytest.mark.parametrize(("given", "kept"), [("2r", "2r"), ("sqrt", "sqrt"), (32, 32.0)])
def test_alpha_is_a_rule_or_a_number(given, kept):
    assert RecipeConfig(lora_alpha=given).as_recipe().lora_alpha == kept


@pytest.mark.parametrize("bad", ["3r", 0, -1.0, "0.0", "nan"])
def test_another_alpha_is_refused(bad):
    with pytest.raises(ValidationError):
        RecipeConfig(lora_alpha=bad)


def test_the_usual_alpha_leaves_the_identity_of_stored_studies():
    """Studies that were made before there was a choice have no `lora_alpha` in their identity."""
    assert "lora_alpha" not in RecipeConfig().identity()
    assert RecipeConfig(lora_alpha=32).identity()["lora_alpha"] == "32"


LATER = {
    "module_learning_rates": {"llm": 1e-4},
    "module_lora_alpha": {"me": 16, "projector": "sqrt"},
    "optimizer": "adamw",
    "beta1": 0.8,
    "beta2": 0.95,
    "schedule": "linear",
    "final_share": 0.1,
    "targets": {"llm": "self_attn"},
    "projector_rank": 0,
    "lora_plus_ratio": 16,
}


@pytest.mark.parametrize("name", LATER)
def test_a_setting_that_came_later_is_in_the_identity_only_where_it_was_changed(name):
    assert name not in RecipeConfig().identity()
    changed = RecipeConfig(**{name: LATER[name]})
    assert content_hash(changed.identity()) != content_hash(RecipeConfig().identity())
    assert RecipeConfig.model_validate(changed.model_dump(mode="json")) == changed  # as a worker is given it


def test_a_recipe_says_of_each_module_what_it_says_of_all():
    recipe = RecipeConfig(learning_rate=1e-3, lora_alpha=8, **LATER).as_recipe()
    assert recipe.learning_rates == (1e-3, 1e-3, 1e-4)
    assert recipe.alpha == (16.0, "sqrt", 8.0)
    assert recipe.targets == (None, None, "self_attn")
    assert RecipeConfig().as_recipe() == Recipe()
    assert RecipeConfig(targets="attention").as_recipe().targets == "attention"


def test_people_read_one_value_a_setting():
    described = RecipeConfig(**LATER).described()
    assert described["module_lora_alpha"] == "me 16, projector sqrt"
    assert described["targets"] == "llm self_attn"
    assert list(RecipeConfig().described()) == [
        *("learning_rate", "batch_size", "warmup_ratio", "max_grad_norm", "lora_dropout", "lora_alpha"),
        *("max_tokens", "dtype"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": 0.1}, "weight_decay 0.1 is AdamW's: set optimizer to adamw"),
        ({"schedule": "constant", "final_share": 0.1}, "a constant schedule ends at its peak"),
        ({"decay_ratio": 0.5}, "decay_ratio is for schedule warmup_stable_decay, and schedule is cosine"),
        ({"schedule": "warmup_stable_decay", "warmup_ratio": 0.9}, "sum to at most 1"),
        ({"lora_plus_ratio": 0.5}, "greater than or equal to 1"),
        ({"targets": {"me": "("}}, r"me: '\(' is no regular expression"),
        ({"targets": "mlp"}, "give all, attention, or a regular expression for me, projector or llm, got 'mlp'"),
        ({"targets": {"vision": "fc"}}, "no such key as vision: it has me, projector, llm"),
        ({"module_lora_alpha": {"me": "3r"}}, "String should match pattern"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        RecipeConfig(**settings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[2e-4, 1e-4]", [(1e-4, 1e-4), (2e-4, 2e-4)]),
        ('"1e-4, 2.0e-4"', [(1e-4, 1e-4), (2e-4, 2e-4)]),
        ("{me: [1e-5, 1e-4], llm: 2e-4}", [(1e-5, 2e-4), (1e-4, 2e-4)]),
        ('"me: 1e-5; llm: 1e-4 2e-4"', [(1e-5, 1e-4), (1e-5, 2e-4)]),
    ],
)
def test_learning_rates_are_read_from_lists_mappings_and_text(tmp_path, given, expected):
    config = read_study(written(tmp_path, MINIMAL + f"calibration: {{learning_rates: {given}}}\n"))
    assert [(rates.me, rates.llm) for rates in config.calibration.rates] == expected
    assert all(rates.projector == rates.llm for rates in config.calibration.rates)
    write_study(config, tmp_path / "again.yaml")
    assert read_study(tmp_path / "again.yaml") == config
    assert StudyConfig.model_validate(config.model_dump(mode="json")) == config  # as workers get it


def test_automatic_and_absent_learning_rates(tmp_path):
    assert read_study(written(tmp_path, MINIMAL)).calibration.rates is None
    assert read_study(written(tmp_path, MINIMAL + "calibration: {learning_rates: auto}\n")).calibration.rates == "auto"
    emptied = StudyConfig(study="/s", model="m", data={"train": "/t"}, calibration={"learning_rates": ""})
    assert emptied.calibration.rates is None


def test_ranks_of_each_module(tmp_path):
    text = "calibration: {ranks: {me: [16, 0, 8], llm: [32, 8, 16]}}\nsearch: {ranks: {me: [0, 8], llm: [8, 64]}}\n"
    config = read_study(written(tmp_path, MINIMAL + text))
    assert config.calibration.grid == ((0, 8, 16), (8, 16, 32))
    assert config.calibration.reference == (8, 8)  # of the shared 8 and 16
    assert config.available_ranks == ((0, 8), (8, 64))
    assert (0, 8) in config.calibration.grid.pairs
    write_study(config, tmp_path / "again.yaml")
    assert read_study(tmp_path / "again.yaml") == config


def test_there_is_no_pair_without_adapters():
    config = StudyConfig(study="/s", model="m", data={"train": "/t"}, calibration={"ranks": [0, 4, 2]})
    assert config.calibration.grid.pairs == [(0, 2), (0, 4), (2, 0), (2, 2), (2, 4), (4, 0), (4, 2), (4, 4)]
    apart = StudyConfig(
        study="/s", model="m", data={"train": "/t"}, calibration={"ranks": {"me": [2, 4], "llm": [8, 16]}}
    )
    assert apart.calibration.reference == (2, 8)


def test_a_form_shows_rates_as_one_field_and_ranks_as_tabs():
    sections = StudyConfig.model_json_schema()["$defs"]
    rates, ranks = (sections["CalibrationConfig"]["properties"][name] for name in ("learning_rates", "ranks"))
    assert (rates["type"], "anyOf" in rates) == ("string", False)
    assert [kind.get("type", "section") for kind in ranks["anyOf"]] == ["array", "section"]
    available = sections["SearchConfig"]["properties"]["ranks"]
    assert [kind.get("type", "section") for kind in available["anyOf"]] == ["array", "section"]
    assert "default" not in available


def form_of(definition):
    """Fields of a section in the order in which Prefect's form shows them: by their position."""
    fields = definition["properties"]
    return sorted(fields, key=lambda name: fields[name]["position"])


def test_a_form_shows_what_most_people_set_first_and_folds_the_rest():
    """Through Prefect's own schema of the flow, as a deployment stores it."""
    from prefect.utilities.callables import parameter_schema

    from flows.study import study_flow

    sections = parameter_schema(study_flow.fn).model_dump()["definitions"]
    study = form_of(sections["StudyConfig"])
    assert study[:7] == ["study", "model", "data", "recipe", "calibration", "search", "final"]
    assert form_of(sections["RecipeConfig"])[:4] == ["learning_rate", "batch_size", "max_tokens", "dtype"]
    assert form_of(sections["CalibrationConfig"])[:3] == ["ranks", "learning_rates", "samples"]
    for name, definition in sections.items():
        if "properties" in definition:
            positions = [field["position"] for field in definition["properties"].values()]
            assert sorted(positions) == list(range(len(positions))), name  # each once, so that no order is left open
    fields = sections["StudyConfig"]["properties"]
    folded = {name for name in study if {"type": "null"} in fields[name].get("anyOf", [])}
    assert folded == {"loading", "fit", "evaluation", "retention", "timeouts", "family"}
    assert set(study[-6:]) == folded
    # What holds a folded section says null for it too: Prefect's form opens what has a value.
    recipe = fields["recipe"]["default"]
    assert (recipe["module_learning_rates"], recipe["module_lora_alpha"]) == (None, None)
    rates = sections["ModuleRates"]["properties"]
    assert [rates[name]["title"] for name in ("me", "projector", "llm")] == ["Vision encoder", "Projector", "LLM"]
    assert sections["RecipeConfig"]["properties"]["lora_alpha"]["title"] == "LoRA alpha"


def test_a_folded_section_that_is_left_alone_is_the_default_one():
    """A form sends null for it."""
    folded = dict.fromkeys(("loading", "fit", "evaluation", "retention", "timeouts", "family"))
    values = {"study": "/out", "model": "some/model", "data": {"train": "train.json"}}
    config = StudyConfig.model_validate({**values, **folded, "recipe": {"module_learning_rates": None}})
    assert config == StudyConfig.model_validate(values)
