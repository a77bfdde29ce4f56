"""Write what the recipe `text-to-sql` trains on into `outputs/text-to-sql`: questions, and a tiny model that can write SQL, carelessly."""

import json

from .policy import warm_up
from .tables import ask_questions, evenly, split_questions
from .task import DATABASE, FOLDER, REWARDS

HELD_OUT = 96
"""Questions of an evaluation; the recipe says it too."""


def main() -> None:
    """Prepare; what is there is kept."""
    questions = ask_questions(DATABASE)
    REWARDS.check(question["answer"] for question in questions)
    train, held_out = split_questions(questions)
    for name, rows in (("train", evenly(train, len(train))), ("test", evenly(held_out, HELD_OUT))):
        lines = [json.dumps({key: row[key] for key in ("question", "answer")}) for row in rows]
        (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = warm_up(FOLDER / "model", questions, DATABASE)
    print(f"{len(train)} questions to train on, {HELD_OUT} held out, and the model {model} that starts.")
    print("Train: a2tgpo train --config text-to-sql")


if __name__ == "__main__":
    main()
