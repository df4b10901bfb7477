"""What is checked once before anything is trained: whether the reviews are enough, and models from elsewhere.

No training function reaches this.  What was found lies under `build()/cache`, by all that it depends on.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import checksums, schema
from alignkit.world.known import GENERATORS

# Whatever reads reviews and models imports the libraries, so it is imported where something has to be read.

CODE = [paths.PACKAGE / name for name in ("workflow/intake.py", "world/own.py", "world/foreign.py")]
LEAST = {"train": 80, "test": 20}
"""Reviews without which intervals, baselines and the reading of single words have too little to go by."""
JUDGES = 0.8
"""Share of the test reviews that a judge may have (`training.judge.MOST`)."""
LEAST_JUDGED, FOLDS = 50, 5
"""Reviews that a judge needs (`schema.Judge`), and of each label (`training.judge.FOLDS`)."""


def once(make: Callable[..., list[str] | None], given: Any, depends: Any) -> tuple[Path, list[str]]:
    """The folder that `make(folder, given)` writes and the lines that it returns; made where it is not there yet.

    Its name is the hash of the code here and of what its result `depends` on.  Raises UserFault where it cannot be
    written.
    """
    code = [checksums.content(str(file)) for file in CODE]
    cache, told = paths.build() / "cache", "told.json"
    folder = cache / f"{make.__name__.strip('_')}-{checksums.of_values([code, depends])}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / told).is_file():
                with tempfile.TemporaryDirectory(dir=cache) as part:
                    made = Path(part, "made")
                    made.mkdir()
                    (made / told).write_text(json.dumps(make(made, given) or []), encoding="utf-8")
                    shutil.rmtree(folder, ignore_errors=True)
                    made.rename(folder)
    except OSError as error:
        raise UserFault(f"{cache}: cannot be written ({error.strerror}); set ALIGNKIT_BUILD to a folder") from None
    return folder, json.loads((folder / told).read_text(encoding="utf-8"))


def taken_in(p: schema.World) -> tuple[str, list[str]]:
    """Where one's own reviews lie in the form that the loader reads, and what was taken for what."""
    columns = (p.text_column, p.label_column, p.positive and tuple(p.positive))
    folder, notes = once(_reviews, (p.data, columns), [columns, checksums.content(p.data) or p.data, Path(p.data).name])
    place = folder / "reviews"
    return str(place) if place.is_dir() else p.data, notes


def _reviews(folder: Path, given: tuple[str, tuple]) -> list[str]:
    """Write reviews/ in the Hub's layout where columns are named: the loader knows the common names alone."""
    from alignkit.world import own

    source, columns = given
    if kept := [name for name in ("dataset_dict.json", "state.json") if Path(source, name).is_file()]:
        allowed = "parquet, CSV or JSON files, such as dataset.to_parquet writes"
        raise UserFault(f"data: {source!r} has a {kept[0]}, so save_to_disk wrote it; allowed: {allowed}")
    frames, notes = own.read(source, own.Columns(*columns))
    if any(columns):
        place = folder / "reviews" / "data"
        place.mkdir(parents=True)
        for name, frame in frames.items():
            frame.to_parquet(place / f"{name}-00000-of-00001.parquet", index=False)
    return [f"data: {Path(source).name}: {'; '.join(notes)}"] if notes else []


def _enough(_: Path, p: schema.Rewarded) -> None:
    """Raise UserFault, one line for each value, where the reviews are too few or too short for the parameters."""
    try:
        train, test = p.reviews().load(p.seeds[0])["train"], p.reviews().load(0)["test"]
        if lines := [*_too_few(p, train["label"][:], test["label"][:])] or [*_too_short(p, test["text"][:])]:
            raise UserFault("\n".join(lines))
    except UserFault as fault:  # named like the user's own files; a split may be smaller than what is asked of it
        said = str(fault).replace(repr(p.reviews().source), repr(p.data))
        sized = re.match("(train|test|unsupervised)_reviews: ", said)
        raise UserFault(said + ("; allowed: less, or null for all" if sized else "")) from None


def _too_few(p: schema.Rewarded, labels: list[int], tested: list[int]) -> Iterator[str]:
    positive, both = sum(labels), 2 * min(sum(labels), len(labels) - sum(labels))
    for name, n in (("train", len(labels)), ("test", len(tested))):
        if n < LEAST[name]:
            yield f"data: {p.data!r} has {n} {name} reviews; at least {LEAST[name]} are needed"
    texts = len(labels) + len(p.reviews().load(0).get("unsupervised", ()))
    most, which = (positive, "positive train reviews") if isinstance(p, schema.DpoLosses) else (texts, "reviews")
    if p.sft_held_out >= most:
        yield f"sft_held_out: {p.sft_held_out} of {most} {which}; allowed: less, such as {max(1, most // 5)}"
    if isinstance(p, schema.RewardModel) and (most := max(p.curve_reviews)) + p.held_out > both:
        yield f"held_out: {p.held_out} and {most} of curve_reviews; allowed: {both} at most in all, half of each label"
    if isinstance(p, schema.Improvements) and (most := max(p.weak_reviews)) > both:
        yield f"weak_reviews: {most}; allowed: at most the {both} train reviews, half of each label"
    if isinstance(p, schema.Evaluated) and p.judge_reviews:
        most, own = int(JUDGES * len(tested)), tested[-p.judge_reviews :]
        some = f", or {LEAST_JUDGED} to {most}, as others give the prompts, with {FOLDS} of each label at least"
        if len(own) > most or min(sum(own), len(own) - sum(own)) < FOLDS:
            yield f"judge_reviews: {p.judge_reviews}; allowed: null (no judge){some if most >= LEAST_JUDGED else ''}"


def _too_short(p: schema.Rewarded, test: list[str]) -> Iterator[str]:
    from alignkit.world.models import load_policy, train_tokenizer

    drawn = [(p.reviews().load(seed)["train"]["text"][:], seed) for seed in p.training_seeds()]
    train = drawn[0][0]
    # The last test reviews are the judge's.
    asked = [("prompts", p.prompts, [(test[: len(test) - (getattr(p, "judge_reviews", None) or 0)], 0)], 20)]
    for key in ("pair_prompts", "distil_prompts", "again_prompts"):
        asked += [(key, getattr(p, key), drawn, 15)] if hasattr(p, key) else []
    asked += [("data", len(train) // 2, drawn, 15)] if isinstance(p, schema.Loop) else []
    short = [one for one in asked if min(_long(texts, one[3]) for texts, _ in one[2]) < one[1]]
    if not short:
        return
    more = p.reviews().load(0).get("unsupervised", {"text": []})["text"][:]
    made = (p.policy_tokenizer, train + more, p.policy_vocab)
    tokenizer = train_tokenizer(*made) if p.policy == "scratch" else load_policy(p.policy)[1]
    for key, n, given, longest in short:
        if (found := min(_usable(tokenizer, n, *one, longest) for one in given)) < n:
            fewer = f"at most {found}, or " if found and key != "data" else ""
            longer = f"of {len(given[0][0])} reviews {n} must be longer than a prompt of 5 to {longest} tokens"
            more = ", or policy_tokenizer: bpe with a small policy_vocab (more tokens)" if p.policy == "scratch" else ""
            yield f"{key}: {longer}, and {found} are; allowed: {fewer}longer reviews{more}"


def _long(texts: list[str], longest: int) -> int:
    """How many texts have more words than a prompt has tokens: these are long enough, as a word is a token at least."""
    return sum(len(text.split(None, longest)) > longest for text in texts)


def _usable(tokenizer: Any, n: int, texts: list[str], seed: int, longest: int) -> int:
    from alignkit.world.reviews import prompts

    try:
        return len(prompts(texts, tokenizer, n=n, shortest=5, longest=longest, seed=seed))
    except UserFault as fault:
        return int(re.findall(r"only (\d+) reviews", str(fault))[0])


def _models(_: Path, p: schema.Rewarded) -> None:
    """Raise UserFault where a model from elsewhere cannot do what is asked of it."""
    from alignkit.world import foreign

    if p.policy != "scratch":
        prefix = p.positive_prefix if isinstance(p, schema.DpoLosses) else ""
        sizes = {"sft_tokens": p.sft_tokens, "new_tokens": p.new_tokens}
        foreign.check_policy(p.policy, **sizes, prefix=prefix, lora=isinstance(p, schema.DpoLosses))
    if p.reward_model != "scratch":
        foreign.check_encoder(p.reward_model, tokens=p.reward_tokens, dropout=p.reward_dropout)


def _spelt(_: Path, p: schema.Rewarded) -> None:
    """Raise UserFault where a review spells what a model from elsewhere reads as a token of its own."""
    from alignkit.world import foreign

    texts = [text for split in p.reviews().load(0).values() for text in split["text"][:]]
    for key, name in (("policy", p.policy), ("reward_model", p.reward_model)):
        if name != "scratch" and (token := foreign.spelt(name, texts)):
            raise UserFault(f"{key}: {name!r} has {token!r}, which reviews spell, for a token; take it out of them")


def checked(p: schema.Rewarded, models: bool) -> list[str]:
    """What was taken for what in one's own reviews; raises UserFault for what cannot be used."""
    named = [(name, checksums.content(name)) for name in (p.data, p.policy, p.reward_model)]
    if tried := models and {p.policy, p.reward_model} != {"scratch"}:
        once(_models, p, [p.model_dump(), *named])
    notes = taken_in(p)[1] if p.own_reviews() else []
    once(_enough, p, [p.model_dump(), *named])
    if tried and p.data not in GENERATORS:
        once(_spelt, p, [asdict(p.reviews()), *named])
    return notes
