"""Memory, time and the choice of a ds_config before a run starts: arithmetic alone, no torch.

What other parts use (these names stay):

    from training.plan.plan import Plan, Ranks, Tiers, plan_run
    plan = plan_run(config, ds_config, shards, Ranks(nodes=2, per_node=8, on_gpu=True), Tiers(gpu=80 * 2**30))

`ds_config`: what `read_ds_file` or `build_ds_config` returns. `shards`: what `check_run` returns, or None. `Tiers`:
bytes there are on one GPU, for all ranks of a node together on its host and its NVMe; None = not known, not judged.
`plan.misfit` is None or the first tier that does not fit (`.tier`, `.needed`, `.available`, str() is one line);
`plan.checkpoint_bytes` is one checkpoint of all ranks together, `plan.save_seconds(bytes_per_second)` its time,
`plan.num_steps` the steps of the run.

    from training.plan.machine import tiers_here
    tiers = tiers_here(config, ds_config, ranks)

is what this machine has, for ranks that run on it; `launch.gpu_memory_gib` stands for a GPU that is not here.

    from training.plan.choose import resolve_micro_packs
    config, why = resolve_micro_packs(config, ds_config, shards, ranks, tiers)

puts a number in place of `batch.micro_packs: auto` (and gives back any other config as it is, `why` empty). Whoever
writes a run folder's config.yaml calls it before `build_ds_config`.
"""
