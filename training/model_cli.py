"""The commands on trained models: export, eval, diff, chat. Imports nothing heavy, as cli.py does not."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_tools.errors import RunError

app = typer.Typer()

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; left out: a GPU if there is one.")]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    typer.Option(help="Of the weights; auto: as they were saved, on a CPU fp32."),
]
MaxNewTokens = Annotated[int, typer.Option(help="The longest answer.")]
Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token each time, 1 draws as the model says.")
]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this share.")]


@app.command()
def export(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="a run's folder, such as runs/demo")
    ],
    output: Annotated[Path, typer.Option("--output", help="the folder to make")],
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="such as step-000100, or best; the newest if left out")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="A whole model, with the adapter worked into its weights.")
    ] = False,
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(
            help="Of a whole model: int8 weights, from pip's extra `quantize`; prints the change of loss."
        ),
    ] = None,
    loss_tokens: Annotated[
        int,
        typer.Option(min=0, help="With --quantize: held-out tokens that the loss is measured on; 0: not."),
    ] = 16_384,
) -> None:
    """Write a checkpoint as a Hugging Face folder: weights, tokenizer, chat template, settings, model card.

    A run that trained an adapter gives a folder for peft, unless it is merged.
    """
    from training.export import export_run

    exported = export_run(
        run_folder.absolute(),
        checkpoint,
        output.absolute(),
        merge=merge,
        quantize=quantize is not None,
        loss_tokens=loss_tokens,
    )
    typer.echo(exported)


@app.command("eval")
def eval_(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL_DIR SHARDS", help="a model and a shard folder; with --compare or --matrix: results"
        ),
    ],
    *,
    split: Annotated[
        list[str] | None,
        typer.Option(help="test, unseen_tasks, validation or train; may be repeated; left out: test."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the results go; left out: MODEL_DIR/evaluation/SPLIT.")
    ] = None,
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(
            help="What makes the answers. vllm has to be installed; the loss is transformers' in any case."
        ),
    ] = "transformers",
    limit: Annotated[
        int | None, typer.Option(help="So many documents, drawn by a hash; left out: all.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 8,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws and of the confidence intervals.")] = 17,
    chat_template: Annotated[
        str | None,
        typer.Option(help="Where the folder has none: `shards` takes theirs; a built-in one; a .jinja file."),
    ] = None,
    device: Device = None,
    precision: Precision = "auto",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Add the scores to this TensorBoard folder, such as a run's.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="With --tensorboard: the step at which they stand there.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two result folders A B with a paired test.")
    ] = False,
    matrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write result folders as a forgetting matrix, groups x checkpoints; .md or .json.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What is compared, such as loss; left out: exact_match."),
    ] = None,
) -> None:
    """Measure a model on held-out conversations: loss, and answers scored against all references, by task.

    shardtune eval --compare A B and shardtune eval --matrix FILE A B C put result folders side by side.
    """
    from data_tools.report import make_console
    from training.evaluation.command import Choices, evaluate, print_results
    from training.evaluation.compare import print_comparison, write_matrix
    from training.generation import Sampling

    if compare and matrix is not None:
        raise RunError("eval: got --compare and --matrix; expected one of them")
    if metric is not None and not compare and matrix is None:
        raise RunError(
            f"--metric: got {metric} without --compare or --matrix; expected one of them: what is measured is "
            "everything, and --metric says what is compared"
        )
    if step is not None and tensorboard is None:
        raise RunError(
            f"--step: got {step} without --tensorboard; do: name the TensorBoard folder, or leave it out"
        )
    if tensorboard is not None and step is None:
        raise RunError("--step: missing; expected the step at which the scores stand in --tensorboard")
    compared = metric or "exact_match"
    if compare:
        print_comparison(paths, metric=compared, seed=seed, console=make_console())
        return
    if matrix is not None:
        write_matrix(paths, matrix, metric=compared, console=make_console())
        return
    if len(paths) != 2:
        raise RunError(f"eval: got {len(paths)} paths; expected MODEL_DIR SHARDS")
    model, shards = paths
    splits = tuple(dict.fromkeys(split or ["test"]))
    choices = Choices(
        splits=splits,
        output=output or model / "evaluation" / "+".join(splits),
        sampling=Sampling(max_new_tokens, temperature, top_p, seed),
        engine=engine,
        batch_size=batch_size,
        limit=limit,
        chat_template=chat_template,
        device=device,
        precision=precision,
        tensorboard=tensorboard,
        step=step,
    )
    print_results(evaluate(model, shards, choices, make_console()), choices.output, make_console())


@app.command()
def diff(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="the folder of a run, such as runs/demo")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="the folder of another")],
) -> None:
    """Show what differs between two runs: data, settings, place and losses."""
    from data_tools.report import make_console
    from training.diff import print_diff

    print_diff(run_a, run_b, make_console())


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="an export, or any Hugging Face folder")],
    *,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this question alone, and end.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system turn of the conversation.")
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 17,
    chat_template: Annotated[
        str | None,
        typer.Option(help="A built-in one or a .jinja file, where the folder has none of its own."),
    ] = None,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Talk to a model. Without a terminal, what comes through the pipe is the question."""
    from training.chat import chat as run_chat
    from training.generation import Sampling

    run_chat(
        model,
        Sampling(max_new_tokens, temperature, top_p, seed),
        system=system,
        once=once,
        chat_template=chat_template,
        device=device,
        precision=precision,
    )
