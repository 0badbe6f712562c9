"""Run the peers of dltrain's sweeps: hand-written loops under stock Hydra and under Ray Tune.

python benchmarks/sweep_peers.py -m +loop=loader +lr=0.1,0.01 …     # Hydra, basic launcher or hydra/launcher=joblib
python benchmarks/sweep_peers.py ray lr=0.1,0.01 …                  # Ray Tune, the loop over tensors
"""

import os
import sys

import hydra
import sweep_loop
import torch
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=None)
def job(config: DictConfig) -> float:
    accuracy = sweep_loop.train(config.loop, config.model, config.lr, config.momentum, config.seed, config.epochs)
    print(f"accuracy {accuracy:.4f}", flush=True)
    return accuracy


def with_ray(model: str, lr: str, momentum: str, seed: str, epochs: str) -> None:
    import ray
    from ray import tune

    def trainable(config: dict[str, float]) -> dict[str, float]:
        torch.set_num_threads(1)
        return {
            "accuracy": sweep_loop.train(
                "tensors", model, config["lr"], config["momentum"], int(config["seed"]), int(epochs)
            )
        }

    space = {
        key: tune.grid_search([float(value) for value in values.split(",")])
        for key, values in {"lr": lr, "momentum": momentum, "seed": seed}.items()
    }
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False)
    results = tune.Tuner(trainable, param_space=space).fit()
    print(f"{len(results)} trials, best {results.get_best_result('accuracy', 'max').metrics['accuracy']:.4f}")


if __name__ == "__main__":
    if sys.argv[1] == "ray":
        with_ray(**dict(argument.split("=") for argument in sys.argv[2:]))
    else:
        job()
