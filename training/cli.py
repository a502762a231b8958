"""The command `shardtune`. Imports nothing heavy: `--help` must answer at once."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from data_tools.cli import app as data_app
from data_tools.errors import ShardtuneError
from training.model_cli import app as model_app

app = typer.Typer(
    name="shardtune",
    help="From instruction datasets to a fine-tuned model: packed shards, then ZeRO-3 with offload.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
run_app = typer.Typer()
# Unnamed: their commands become ours, in this order.
app.add_typer(data_app)
app.add_typer(run_app)
app.add_typer(model_app)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, such as optim.lr=2e-5"),
]


@run_app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="the folder to begin in; made if it is not there")
    ],
) -> None:
    """Lay down starting files: data.yaml, run.yaml, ds_configs and job scripts. Nothing is written over."""
    from training.starting_files import lay_down

    for name in lay_down(folder):
        typer.echo(folder / name)


@run_app.command()
def train(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run's settings")],
    overrides: Overrides = None,
    print_: Annotated[
        bool, typer.Option("--print", help="Prepare the run folder and print the launcher's line.")
    ] = False,
) -> None:
    """Check a run and train it on this machine; started again, it goes on where it was.

    Ctrl-C, SIGTERM, SIGUSR1 or a file STOP in the run folder make it save and end with exit code 75.
    """
    from training.config import load_run_config
    from training.launch import print_command
    from training.launch import train as train_here

    config = load_run_config(run, overrides or [])
    if print_:
        typer.echo(print_command(config))
        return
    raise typer.Exit(train_here(config))


@run_app.command()
def status(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="a run's folder, such as runs/demo")
    ],
    json_: Annotated[bool, typer.Option("--json", help="All of it as JSON, for programs.")] = False,
) -> None:
    """Show where a run stands, and why it stopped, from its files alone."""
    from training.status.report import read_status, to_json, to_text

    found = read_status(run_folder)
    typer.echo(to_json(found) if json_ else to_text(found))


@run_app.command()
def report(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER", help="a run's folder, such as runs/demo")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; left out: report.html in the run's folder.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that `shardtune eval` has written elsewhere; may be repeated."),
    ] = None,
) -> None:
    """Write what a run did as one HTML page: curves, plan against measured, starts, data, evaluations, settings."""
    from training.report.page import write_report

    typer.echo(write_report(run_folder, output, evaluation or []))


@run_app.command()
def submit(
    settings: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.yaml|DATA.yaml",
            help="the settings of a run, or of data to be made; with --eval a run's folder too",
        ),
    ],
    overrides: Overrides = None,
    *,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Of a run: in place of slurm.nodes.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Of a run: show the queue, then the steps, until it ends.")
    ] = False,
    array: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of data: tokenize as an array of N jobs; left out, one job does it all."
        ),
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="Of data: a site profile, as slurm.site is for a run.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="Of data and --eval: an option for sbatch, such as --option=--account=me; may be repeated."
        ),
    ] = None,
    eval_: Annotated[
        bool,
        typer.Option(
            "--eval",
            help="Not the training: a job of its own that evaluates its newest checkpoints beside it.",
        ),
    ] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Of --eval: this one alone, such as step-000100, or best, as it is now."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Of --eval: may be repeated; left out: test, else validation."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Of --eval: so many documents of each split; left out: all.")
    ] = None,
    keep_export: Annotated[
        bool, typer.Option("--keep-export", help="Of --eval: keep the exported models, in RUN/export.")
    ] = False,
    print_: Annotated[
        bool, typer.Option("--print", help="Prepare the folder and print the job script; send nothing.")
    ] = False,
) -> None:
    """Check a run, write its job script into the run folder, and give it to Slurm; a job goes on where the run was.

    The script saves and requeues itself before its time limit and when it is preempted.

    With --eval the job evaluates checkpoints beside the training; scores go to the run's TensorBoard.
    """
    from training.cluster.data_jobs import is_data_file, refuse_options, submit_data
    from training.cluster.follow import follow as follow_job
    from training.cluster.submit import prepare_job, send
    from training.config import load_run_config
    from training.events import record_event

    of_a_run = {"--nodes": nodes, "--follow": follow}
    of_eval = {"--checkpoint": checkpoint, "--split": split, "--limit": limit, "--keep-export": keep_export}
    if eval_:
        from training.cluster.eval_job import submit_eval

        refuse_options(
            "--eval", "a run and a job of one node", {**of_a_run, "--array": array, "--site": site}
        )
        submit_eval(
            settings,
            overrides or [],
            checkpoint=checkpoint,
            splits=split or [],
            limit=limit,
            keep_export=keep_export,
            options=option or [],
            print_only=print_,
        )
        return
    refuse_options(settings, "--eval beside it", of_eval)
    if is_data_file(settings):
        refuse_options(settings, "a run's settings", of_a_run)
        submit_data(
            settings, overrides or [], array=array, site=site, options=option or [], print_only=print_
        )
        return
    refuse_options(settings, "a data.yaml's settings", {"--array": array})
    in_the_file = {"--site": site, "--option": option}
    refuse_options(settings, "them in the run's file, as slurm.site and slurm.options", in_the_file)
    changes = [*(overrides or []), *([f"slurm.nodes={nodes}"] if nodes is not None else [])]
    script = prepare_job(load_run_config(settings, changes))
    if print_:
        typer.echo(script.text, nl=False)
        return
    job = send(script.path)
    record_event(script.run.path, "submitted", job=job)
    typer.echo(f"submitted batch job {job}; its log will be in {script.run.logs}")
    if follow:
        raise typer.Exit(follow_job(script.run.path, job))


@run_app.command()
def check(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run's settings")],
    overrides: Overrides = None,
    on_nodes: Annotated[
        bool,
        typer.Option(
            "--on-nodes", help="Start the ranks, and try the nodes: network, disks, memory, one real step."
        ),
    ] = False,
) -> None:
    """Check everything about a run that can be known before it starts; exit code 2 if it should not.

    With --on-nodes this is a job step of its own, under srun as the training will be, or here with the launcher.
    """
    from training.config import load_run_config

    config = load_run_config(run, overrides or [])
    if on_nodes:
        from training.preflight.on_nodes import check_on_nodes

        raise typer.Exit(check_on_nodes(config))
    from training.preflight.here import print_check

    raise typer.Exit(print_check(config))


@run_app.command()
def plan(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run's settings")],
    overrides: Overrides = None,
    *,
    nodes: Annotated[int | None, typer.Option(help="Nodes; left out: slurm.nodes.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of a node; left out: launch.gpus_per_node, else those here.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(metavar="GIB", help="Of one GPU.")] = None,
    host_memory: Annotated[float | None, typer.Option(metavar="GIB", help="Of one node.")] = None,
    nvme: Annotated[float | None, typer.Option(metavar="GIB", help="Free on the disk of one node.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(metavar="X", help="Of all ranks together, for the hours.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="RUN_FOLDER", help="An earlier run, to take speeds from.")
    ] = None,
    disk: Annotated[
        float | None, typer.Option(metavar="GIB", help="A second: how fast checkpoints are written.")
    ] = None,
    ds_config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|all", help="Another file of ds_configs; all: the run's and those beside it."
        ),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="The tokens of a pack, while there are no shards.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="All of it as JSON, for programs.")] = False,
) -> None:
    """Say whether a run fits in memory, which ds_config is the fastest that does, and how long it takes.

    Arithmetic alone: no GPU is needed, nothing is loaded.
    """
    from training.config import load_run_config
    from training.plan.command import Options, show_plan

    options = Options(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu_memory=gpu_memory,
        host_memory=host_memory,
        nvme=nvme,
        tokens_per_second=tokens_per_second,
        disk=disk,
        calibrate=calibrate,
        ds_config=ds_config,
        seq_len=seq_len,
    )
    show_plan(load_run_config(run, overrides or []), options, as_json_=json_)


@run_app.command()
def selftest(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run's settings")],
    overrides: Overrides = None,
) -> None:
    """Train a few steps in several ways on this model and these shards, and see that they give the same numbers.

    Documents alone or packed, other micro-batches and ranks, offload or none, from a checkpoint, and the export.
    """
    from training.config import load_run_config
    from training.selftest import selftest as run_selftest

    raise typer.Exit(run_selftest(load_run_config(run, overrides or [])))


def main() -> None:
    """Run the command line; a mistake of the user's ends with one report and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        app()
    except ShardtuneError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk, a folder that is a file, a path that may not be written: the machine's, and one line.
        sys.stderr.write(f"{error.filename or 'shardtune'}: {error.strerror or error}\n")
        sys.exit(ShardtuneError.exit_code)


if __name__ == "__main__":
    main()
