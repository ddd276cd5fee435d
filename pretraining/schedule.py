"""The learning rate of a step: linear warm-up, then polynomial decay to zero."""


def poly_warmup(step: int, *, base_lr: float, warmup_proportion: float, total_steps: int, degree: float = 0.5) -> float:
    """Learning rate of step 1, 2, ... total_steps of a phase; the last step and any later one get 0.

    With p = step / total_steps it rises as p / warmup_proportion until p reaches that, then falls as (1 - p)^degree.
    """
    if not 0 <= warmup_proportion < 1:
        raise ValueError(f"warmup_proportion {warmup_proportion}: give a fraction of the phase, 0 <= fraction < 1")
    progress = step / total_steps
    if progress < warmup_proportion:
        return base_lr * progress / warmup_proportion
    return base_lr * max(0.0, 1.0 - progress) ** degree
