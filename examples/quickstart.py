"""Fit a line, log it, find the best run. Start a gateway first: see the README."""

import headrace

EXPERIMENT = "examples/quickstart/line"
config = {"learning_rate": 0.02}

with headrace.init(experiment=EXPERIMENT, config=config, tags={"kind": "example"}) as run:
    slope = 0.0
    for step in range(200):
        error = slope - 3.0
        slope -= config["learning_rate"] * 2 * error
        run.log({"loss": error**2, "slope": slope}, step=step)
    run.summary["slope"] = slope

with headrace.Client() as client:
    best = client.search_runs(experiments=[EXPERIMENT], order_by=["metrics.loss ASC"], limit=3)
    for found in best:
        print(found.name, found.state, f"slope {found.summary['slope']:.4f}")
