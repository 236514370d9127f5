"""One choice of EWA at a time, on the ViT and the digits of any_vit.py, at one learning rate for all; 15 minutes."""

from any_vit import Arguments, parse, train
from digits import accuracy, digits, publish

LR = 2e-3  # validation chose it for EWA in any_vit.py; dense is as good there as at its own rate, within 0.1 points
PARTS = {"merged": "test", "val": "val"}


def one(title: str, averaging: Arguments | None = None, **experts: object) -> tuple[str, Arguments, Arguments]:
    """The defaults of pc_ewa, but for these arguments of `upcycle` and `ExpertAverager`."""
    return title, {"num_experts": 4, **experts}, averaging or {}


VARIANTS = {
    "dense": ("dense", {}, {}),
    "ewa": one("EWA: 4 experts, every-2, linear to β = 0.3, copies, batch"),
    "experts_2": one("2 experts", num_experts=2),
    "experts_8": one("8 experts", num_experts=8),
    "last_2": one("the last 2 FFNs", layers="last-2"),
    "all": one("all 4 FFNs", layers="all"),
    "rate_0": one("β = 0", {"share_rate": 0.0}),
    "rate_0.01": one("β = 0.01, constant", {"share_rate": 0.01, "schedule": "constant"}),
    "rate_0.1": one("linear to β = 0.1", {"share_rate": 0.1}),
    "rate_0.5": one("linear to β = 0.5", {"share_rate": 0.5}),
    "full": one("β = 3/4, constant: merged after every step", {"share_rate": 0.75, "schedule": "constant"}),
    "constant": one("constant β = 0.3", {"schedule": "constant"}),
    "cosine": one("cosine to β = 0.3", {"schedule": "cosine"}),
    "independent": one("independent experts", init="independent"),
    "sample": one("tokens dealt in each image", partition="sample"),
}


def main() -> None:
    """Train every variant with every seed."""
    options = parse(__doc__, seeds=10)
    data, seeds, variants = digits(), list(range(options.seeds)), {}
    for name, (title, *ewa) in VARIANTS.items():
        models = {s: train(data["train"], *ewa, LR, s, options.epochs) for s in seeds}
        scores = {k: {s: accuracy(models[s], *data[part]) for s in seeds} for k, part in PARTS.items()}
        variants[name] = {"title": title, "scores": scores}
    command = f"python examples/ablations.py --seeds {options.seeds} --epochs {options.epochs}"
    title = "Ablations: a ViT of transformers on digits"
    publish(options.json, variants, seeds, name="digits_ablations", title=title, command=command, summary=False)


if __name__ == "__main__":
    main()
