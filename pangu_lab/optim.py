"""SGD, Adagrad, RMSProp, Adam and AdamW from their formulas, as ``torch.optim.Optimizer``.

Each class is its ``update``: the lines of the paper, one tensor operation a symbol. Names, defaults, state
and refusals are torch's, so that either can load the other's ``state_dict``; the numbers agree to rounding.
They are written to be read; torch's fused versions are the ones to train large models with.

Letters: ``g`` gradient, ``theta`` parameter, ``lr`` step size, ``t`` number of the step, from 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class _FromFormula(Optimizer, ABC):
    """What the five share: the loop over parameters, closures, and the checks of torch."""

    # Settings that a state dict of torch's lacks, with the value that means "as torch does".
    ours: ClassVar[dict[str, Any]] = {"eps_inside_root": False}

    def __init__(self, params: Parameters, **defaults: Any) -> None:
        for name, value in defaults.items():
            if name in _LIMITS and not _LIMITS[name][1](value):
                raise ValueError(f"Invalid {_LIMITS[name][0]}: {value}")
        for index, beta in enumerate(defaults.get("betas", ())):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.ours.items():
                if name in self.defaults:
                    group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient; ``closure`` computes the loss again, with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                if theta.grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients; use dense ones")
                self.update(theta, theta.grad, self.state[theta], group)
        return loss

    @abstractmethod
    def update(self, theta: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change ``theta`` in place; ``state`` is this parameter's own."""


_LIMITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "lr": ("learning rate", lambda v: v >= 0.0),
    "momentum": ("momentum value", lambda v: v >= 0.0),
    "weight_decay": ("weight_decay value", lambda v: v >= 0.0),
    "eps": ("epsilon value", lambda v: v >= 0.0),
    "alpha": ("alpha value", lambda v: v >= 0.0),
    "lr_decay": ("lr_decay value", lambda v: v >= 0.0),
    "initial_accumulator_value": ("initial_accumulator_value value", lambda v: v >= 0.0),
}


class SGD(_FromFormula):
    """Stochastic gradient descent with momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013, §2).

    .. math:: b_t = \\mu b_{t-1} + (1-\\tau) g_t, \\quad \\theta_t = \\theta_{t-1} - \\eta b_t

    The first buffer is the first gradient itself, without dampening, as in torch.

    Raises
    ------
    ValueError
        A negative rate, momentum or decay; Nesterov without momentum or with dampening.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def update(self, theta: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        mu = group["momentum"]
        g = g + group["weight_decay"] * theta if group["weight_decay"] else g
        if mu:
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = g.clone()
            else:
                state["momentum_buffer"].mul_(mu).add_(g, alpha=1 - group["dampening"])
            b = state["momentum_buffer"]
            g = g + mu * b if group["nesterov"] else b
        theta.add_(g, alpha=-group["lr"])


class Adagrad(_FromFormula):
    """Adagrad (Duchi et al. 2011): each parameter's rate falls with the sum of its squared gradients.

    .. math:: G_t = G_{t-1} + g_t^2, \\quad \\theta_t = \\theta_{t-1} - \\eta_t g_t / (\\sqrt{G_t} + \\epsilon)
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )

    def update(self, theta: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.tensor(0.0)
            state["sum"] = torch.full_like(theta, group["initial_accumulator_value"])
        state["step"] += 1
        g = g + group["weight_decay"] * theta if group["weight_decay"] else g
        lr = group["lr"] / (1 + (float(state["step"]) - 1) * group["lr_decay"])
        state["sum"].addcmul_(g, g)
        theta.addcdiv_(g, state["sum"].sqrt().add_(group["eps"]), value=-lr)


class RMSprop(_FromFormula):
    """RMSProp (Tieleman and Hinton 2012, lecture 6.5): a moving average in place of Adagrad's sum.

    .. math:: v_t = \\alpha v_{t-1} + (1-\\alpha) g_t^2, \\quad
       \\theta_t = \\theta_{t-1} - \\eta g_t / (\\sqrt{v_t} + \\epsilon)

    ``centered`` subtracts the squared mean gradient from ``v`` (Graves 2013); ``momentum`` gathers the steps.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def update(self, theta: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        alpha = group["alpha"]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in (
                "square_avg",
                *["momentum_buffer"] * bool(group["momentum"]),
                *["grad_avg"] * group["centered"],
            ):
                state[name] = torch.zeros_like(theta)
        state["step"] += 1
        g = g + group["weight_decay"] * theta if group["weight_decay"] else g
        v = state["square_avg"].mul_(alpha).addcmul_(g, g, value=1 - alpha)
        if group["centered"]:
            mean = state["grad_avg"].lerp_(g, 1 - alpha)
            v = v.addcmul(mean, mean, value=-1)
        denominator = v.sqrt().add_(group["eps"])
        if group["momentum"]:
            b = state["momentum_buffer"].mul_(group["momentum"]).addcdiv_(g, denominator)
            theta.add_(b, alpha=-group["lr"])
        else:
            theta.addcdiv_(g, denominator, value=-group["lr"])


class Adam(_FromFormula):
    """Adam (Kingma and Ba 2015, algorithm 1).

    .. math::
       m_t = \\beta_1 m_{t-1} + (1-\\beta_1) g_t, \\quad v_t = \\beta_2 v_{t-1} + (1-\\beta_2) g_t^2, \\\\
       \\hat m_t = m_t / (1-\\beta_1^t), \\quad \\hat v_t = v_t / (1-\\beta_2^t), \\quad
       \\theta_t = \\theta_{t-1} - \\eta\\, \\hat m_t / (\\sqrt{\\hat v_t} + \\epsilon)

    Parameters
    ----------
    weight_decay
        Added to the gradient, so that it is divided by the root as well (L2 regularization). ``AdamW``
        decays the weights themselves.
    eps_inside_root
        The paper that this course follows prints :math:`\\sqrt{\\hat v_t + \\epsilon}`. With it, gradients far
        below :math:`\\sqrt\\epsilon` hardly move a parameter.
    bias_correction
        Without it, m and v start out too small: they begin at zero.
    """

    decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_inside_root: bool = False,
        bias_correction: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            eps_inside_root=eps_inside_root,
            bias_correction=bias_correction,
        )

    ours: ClassVar[dict[str, Any]] = {"eps_inside_root": False, "bias_correction": True}

    def update(self, theta: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(theta), torch.zeros_like(theta)
        state["step"] += 1
        t, lr, eps, (beta1, beta2) = float(state["step"]), group["lr"], group["eps"], group["betas"]
        if group["weight_decay"]:
            if self.decoupled:
                theta.mul_(1 - lr * group["weight_decay"])
            else:
                g = g + group["weight_decay"] * theta
        m = state["exp_avg"].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        corrected = group["bias_correction"]
        m_hat_factor = 1 / (1 - beta1**t) if corrected else 1.0
        v_hat = v / (1 - beta2**t) if corrected else v
        root = (v_hat + eps).sqrt() if group["eps_inside_root"] else v_hat.sqrt() + eps
        theta.addcdiv_(m, root, value=-lr * m_hat_factor)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    .. math:: \\theta_t = (1 - \\eta\\lambda)\\,\\theta_{t-1} - \\eta\\, \\hat m_t / (\\sqrt{\\hat v_t} + \\epsilon)
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)
