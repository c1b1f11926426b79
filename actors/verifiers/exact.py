"""``exact``: the boxed text equals the gold answer up to case and white space."""

from actors.verifiers.base import Args, Scored, final_answer, fold, gold_problem


class Exact:
    name = "exact"
    version = "1"

    def warm_up(self) -> None:
        """Nothing to import."""

    def score(self, text: str, answer: str, args: Args) -> Scored:
        found = final_answer(text)
        canonical = fold(found)
        return Scored(reward=float(canonical == fold(answer)), answer=found, canonical=canonical)

    def problem(self, answer: str, args: Args) -> str | None:
        return gold_problem(answer)
