"""Write a small corpus of three families in the formats in which the real datasets are published.

    python make_corpus.py OUTPUT_FOLDER

    tasks/task*.json    multi-task, Super-NaturalInstructions task files
    alpaca.json         single-turn, an Alpaca array
    dialogues.json      multi-turn, ShareGPT conversations

Every answer follows from its question by a rule that a tiny model can learn in minutes, so that right answers to
questions it has never seen show that it learned the rule. The same rows come out on every machine.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "Joan",
    "Kim",
    "Leo",
    "Mia",
    "Nils",
    "Olga",
    "Pia",
    "Quinn",
    "Rosa",
    "Sam",
    "Tara",
]
THINGS = [
    "box",
    "cup",
    "hat",
    "ball",
    "lamp",
    "door",
    "book",
    "coin",
    "drum",
    "kite",
    "chair",
    "shoe",
    "ring",
    "boat",
    "bell",
]
COLOURS = ["red", "blue", "green", "black", "white", "yellow", "brown", "pink"]
PLACES = ["Rome", "Oslo", "Lima", "Cairo", "Paris", "Delhi", "Quito", "Tokyo"]
DRINKS = ["tea", "milk", "juice", "water", "cocoa", "coffee"]
PRAISE = ["good", "lovely", "great", "fine", "superb"]
BLAME = ["bad", "awful", "poor", "dull", "dreadful"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def colour_of(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(THINGS, 2)
    colour, other = rng.sample(COLOURS, 2)
    return f"The {first} is {colour} and the {second} is {other} . Colour of the {first} ?", colour


def sentiment_of(rng: random.Random) -> tuple[str, str]:
    positive = rng.random() < 0.5
    thing, name = rng.choice(THINGS), rng.choice(NAMES)
    word = rng.choice(PRAISE if positive else BLAME)
    return (
        f"{name} says that the {thing} from {rng.choice(PLACES)} is {word} .",
        "positive" if positive else "negative",
    )


def place_of(rng: random.Random) -> tuple[str, str]:
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    return f"{name} took a {rng.choice(THINGS)} and went to {place} .", place


TASKS: dict[str, tuple[str, str, Callable[[random.Random], tuple[str, str]]]] = {
    "task001_toy_colour_question_answering": (
        "Question Answering",
        "Answer the question about the colour.",
        colour_of,
    ),
    "task002_toy_sentiment_classification": (
        "Sentiment Analysis",
        "Is the opinion positive or negative?",
        sentiment_of,
    ),
    "task003_toy_place_extraction": ("Information Extraction", "Name the place in the sentence.", place_of),
}


def task_file(name: str, rng: random.Random, num_rows: int) -> dict[str, Any]:
    """Return one Super-NI task object with `num_rows` different instances."""
    category, definition, make = TASKS[name]
    rows = unique_rows(make, rng, num_rows)
    return {
        "Contributors": ["shardtune"],
        "Source": ["shardtune quickstart"],
        "Categories": [category],
        "Reasoning": [],
        "Definition": [definition],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": ["Toy"],
        "Positive Examples": [
            {"input": rows[0][0], "output": rows[0][1], "explanation": "By the rule of the task."}
        ],
        "Negative Examples": [],
        "Instances": [
            {"id": f"{name.split('_')[0]}-{number:05d}", "input": question, "output": [answer]}
            for number, (question, answer) in enumerate(rows)
        ],
        "Instance License": ["Apache 2.0"],
    }


def alpaca_row(rng: random.Random) -> tuple[tuple[str, str], str]:
    if rng.random() < 0.5:
        word = rng.choice(THINGS + COLOURS + DRINKS)
        number = rng.choice(NUMBERS)
        return (
            "Say the thing after the number .",
            f"{rng.choice(NAMES)} has {number} {word} in {rng.choice(PLACES)}",
        ), word
    name, thing, colour = rng.choice(NAMES), rng.choice(THINGS), rng.choice(COLOURS)
    return (f"Who owns the {colour} {thing} ?", f"The {colour} {thing} is for {name}"), name


def dialogue_row(rng: random.Random) -> tuple[tuple[str, ...], str]:
    name, drink, place = rng.choice(NAMES), rng.choice(DRINKS), rng.choice(PLACES)
    turns = [f"I am {name} from {place} .", f"Hello {name} !"]
    turns += [f"I like {drink} .", f"Then have some {drink} ."]
    question, answer = rng.choice(
        [("What is my name ?", name), ("What do I like ?", drink), ("Where am I from ?", place)]
    )
    return (*turns, question), answer


def unique_rows(
    make: Callable[[random.Random], tuple[Any, str]], rng: random.Random, num_rows: int
) -> list[Any]:
    """Return `num_rows` different questions with their answers."""
    rows: dict[Any, str] = {}
    while len(rows) < num_rows:
        question, answer = make(rng)
        rows.setdefault(question, answer)
    return list(rows.items())


def write_corpus(folder: Path, *, rows_per_family: int = 2100) -> None:
    """Write the three datasets into `folder`."""
    rng = random.Random(0)
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        task = task_file(name, rng, rows_per_family // len(TASKS))
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(task, indent=4))
    alpaca = [
        {"instruction": instruction, "input": extra, "output": answer}
        for (instruction, extra), answer in unique_rows(alpaca_row, rng, rows_per_family)
    ]
    (folder / "alpaca.json").write_text(json.dumps(alpaca, indent=4))
    dialogues = [
        {
            "id": f"toy_{number}",
            "conversations": [
                {"from": "human" if turn % 2 == 0 else "gpt", "value": text}
                for turn, text in enumerate((*turns, answer))
            ],
        }
        for number, (turns, answer) in enumerate(unique_rows(dialogue_row, rng, rows_per_family))
    ]
    (folder / "dialogues.json").write_text(json.dumps(dialogues, indent=2))


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
