"""Preference losses: NPO, DPO, KTO and their relatives as functions of one margin.

Everything here is pure: sequence log-probs in (sums over the completion's tokens unless a name says
otherwise), one loss per record out. With `r = logp - ref_logp`:

    margin m          loss                                  method
    r_w - r_l         -log sigmoid(beta m)                  DPO; SPIN, where y_l is sampled from the model
    mean_k r_k - r_l  -log sigmoid(beta m)                  D2O over K answers sampled from the model (alpha = beta)
    0 - r_l           -(2/beta) log sigmoid(beta m)         NPO (DPO without the chosen term, times 2/beta)
    z - beta r_l      1 - (2/beta) log sigmoid(.)           KTO as in the NPO code
    nll_mean - delta  -(2/beta) log sigmoid(beta m)         SimNPO (no reference)
    r_w - r_l         (m - 1/(2 beta))^2                    IPO
    mean_w - mean_l   -log sigmoid(beta m - gamma)          SimPO (means over tokens, no reference)
    odds_w - odds_l   -mean_w - beta log sigmoid(m)         ORPO (log odds of the means, no reference)
    logp_w - logp_l   -log sigmoid(beta m - gamma)          autoregressive reward model: DPO without a reference
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Convex = Literal["logistic", "hinge", "exponential", "correlation"]
PairLossName = Literal["dpo", "ipo", "simpo", "orpo"]


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor | float, ref_rejected: Tensor | float) -> Tensor:
    """The margin `m = (chosen - ref_chosen) - (rejected - ref_rejected)`, in nats; 0 stands for no reference."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def pairwise(z: Tensor, loss: Convex = "logistic") -> Tensor:
    """Convex, decreasing loss of the scaled margin z, elementwise: `(...) -> (...)`.

        logistic -log sigmoid(z)      hinge max(0, 1 - z)      exponential exp(-z)      correlation 1 - z

    Only logistic and exponential have a gradient at every margin and a lower bound; 1 - z is unbounded below.
    """
    if loss == "hinge":
        return F.relu(1 - z)
    if loss == "exponential":
        return torch.exp(-z)
    return 1 - z if loss == "correlation" else -F.logsigmoid(z)


def npo(logp: Tensor, ref_logp: Tensor, beta: float = 0.1) -> Tensor:
    """Negative preference loss, `(B,), (B,) -> (B,)` (Zhang et al., 2024).

        L = -(2/beta) log sigmoid(-beta (logp - ref_logp)) = (2/beta) log(1 + (pi/pi_ref)^beta)

    `logp` is the SUM over answer tokens. L >= 0; as beta -> 0, L - (2/beta) ln 2 -> logp - ref_logp.
    """
    return -(2 / beta) * F.logsigmoid(-beta * (logp - ref_logp))


def npo_weight(logp: Tensor, ref_logp: Tensor, beta: float = 0.1) -> Tensor:
    """W in grad L_NPO = W grad logp: `2 sigmoid(beta (logp - ref_logp))` in (0, 2), 1 where logp = ref_logp."""
    return 2 * torch.sigmoid(beta * (logp - ref_logp))


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float | Tensor = 0.0,
) -> Tensor:
    """DPO (Rafailov et al., 2023), `-log sigmoid(beta m)`, m = (chosen - ref_chosen) - (rejected - ref_rejected).

    `label_smoothing` e, a scalar or one value per pair `(B,)`, gives the conservative form
    `-(1-e) log sigmoid(beta m) - e log sigmoid(-beta m)`, whose minimum is at `beta m = log((1-e)/e)`.
    The NPO paper multiplies this loss by `2/beta`.
    """
    z = beta * margin(chosen, rejected, ref_chosen, ref_rejected)
    return (1 - label_smoothing) * pairwise(z) + label_smoothing * pairwise(-z)


def ipo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float = 0.1) -> Tensor:
    """IPO (Azar et al., 2023), `(m - 1/(2 beta))^2`: a target margin, not an ever wider one; `1/(4 beta^2)` at m = 0.

    On sums, as in the paper; some libraries take means over tokens.
    """
    return (margin(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)).square()


def simpo(chosen_mean: Tensor, rejected_mean: Tensor, beta: float = 2.0, gamma: float = 0.5) -> Tensor:
    """SimPO (Meng et al., 2024), `-log sigmoid(beta (chosen_mean - rejected_mean) - gamma)`: means, no reference."""
    return pairwise(beta * (chosen_mean - rejected_mean) - gamma)


def orpo(chosen_mean: Tensor, rejected_mean: Tensor, beta: float = 0.1) -> Tensor:
    """ORPO (Hong et al., 2024), `-chosen_mean - beta log sigmoid(log odds_w - log odds_l)`, odds = p / (1 - p).

    p = e^mean, with the mean log-prob of a side's tokens; no reference. Equal sides give `-chosen_mean + beta log 2`.
    """

    def log_odds(mean: Tensor) -> Tensor:
        return mean - torch.log(-torch.expm1(mean.clamp(max=-1e-6)))

    return -chosen_mean + beta * pairwise(log_odds(chosen_mean) - log_odds(rejected_mean))


class PairLoss(NamedTuple):
    """A pair loss looked up by name: `loss(logp (B, 2), ref_logp (B, 2), index (B,)) -> (B,)`, chosen first.

    `mean`: whether it takes means over tokens; `reference`: whether it needs a reference model.
    """

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    mean: bool
    reference: bool


def pair_loss(name: PairLossName, beta: float, gamma: float = 0.5, label_smoothing: float | Tensor = 0.0) -> PairLoss:
    """Return a pair loss by name.

    Args:
        name: dpo or ipo; or, without a reference and on means over tokens, simpo or orpo.
        beta: scale of the margin; for orpo, weight of the odds.
        gamma: for simpo, the target margin.
        label_smoothing: for dpo, one value for all pairs or one per pair, `(N,)`.
    """

    def loss(logp: Tensor, ref: Tensor, index: Tensor) -> Tensor:
        if name == "simpo":
            return simpo(logp[:, 0], logp[:, 1], beta, gamma)
        if name == "orpo":
            return orpo(logp[:, 0], logp[:, 1], beta)
        sides = (logp[:, 0], logp[:, 1], ref[:, 0], ref[:, 1])
        if name == "ipo":
            return ipo(*sides, beta)
        smoothing = label_smoothing.to(logp)[index] if isinstance(label_smoothing, Tensor) else label_smoothing
        return dpo(*sides, beta, smoothing)

    reference_free = name in ("simpo", "orpo")
    return PairLoss(loss, mean=reference_free, reference=not reference_free)


def aggregated(
    z: Tensor, how: Literal["mean", "logit", "vote"] = "mean", share: Tensor | float | None = None
) -> Tensor:
    """Aggregate preferences over contexts, `P(1 > 2) = sum_z p(z) P(1 > 2 | z)`; margins z `(..., m)` give `(...)`.

        mean  mean of sigmoid(z)       logit  sigmoid of the mean margin       vote  share of contexts with z > 0

    They can disagree: (4, -1, -1) gives .507, .66 and 1/3. `share (..., m)` is p(z), which sums to 1; 1/m by default.
    """
    weight = torch.full_like(z, 1 / z.shape[-1]) if share is None else torch.as_tensor(share).to(z).expand_as(z)
    if how == "logit":
        return torch.sigmoid((weight * z).sum(-1))
    verdicts = torch.sigmoid(z) if how == "mean" else (z > 0).to(z) + 0.5 * (z == 0).to(z)
    return (weight * verdicts).sum(-1)


def spin(
    real: Tensor,
    own: Tensor,
    ref_real: Tensor | float,
    ref_own: Tensor | float,
    lam: float = 0.1,
    loss: Convex = "logistic",
) -> Tensor:
    """SPIN (Chen et al., 2024): `l(lam m)`, m the margin of a demonstration over the opponent's answer.

    The opponent is the reference, and `own` was sampled from it. With the logistic l this is DPO. The
    optimum over all models is `p ∝ ref (p_data / ref)^(1/lam)`.
    """
    return pairwise(lam * margin(real, own, ref_real, ref_own), loss)


def autoregressive_reward(
    chosen: Tensor,
    rejected: Tensor,
    beta: float = 0.05,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
    loss: Convex = "logistic",
) -> Tensor:
    """GenARM's reward model loss (Xu et al., 2024): Bradley-Terry with log-probs as rewards, `(B,), (B,) -> (B,)`.

        z = beta (chosen - rejected) - gamma,      L = (1 - e) l(z) + e l(-z),      e = label_smoothing

    With gamma = 0 this is DPO whose reference gives both sides the same log-prob.
    """
    z = beta * margin(chosen, rejected, 0.0, 0.0) - gamma
    return (1 - label_smoothing) * pairwise(z, loss) + label_smoothing * pairwise(-z, loss)


def d2o(
    anchors: Tensor,
    negative: Tensor,
    ref_anchors: Tensor,
    ref_negative: Tensor,
    beta: float = 0.1,
    alpha: float = 0.1,
    share: Tensor | None = None,
    average: Literal["inside", "outside"] = "inside",
) -> Tensor:
    """Distributional dispreference (Duan et al., 2024): K answers sampled from the model against a rejected one.

        z = beta mean_k (anchors - ref_anchors) - alpha (negative - ref_negative),      L = -log sigmoid(z)

    Args:
        anchors: `(B, K)`.
        negative: `(B,)`.
        ref_anchors: `(B, K)`, under ref_minus, the more harmful reference.
        ref_negative: `(B,)`, under ref_plus, the less harmful reference.
        beta: scale of the anchor term.
        alpha: scale of the negative term; K = 1 and alpha = beta give DPO, beta = 0 gives `alpha/2` times NPO.
        share: weight of each anchor in the mean, `(B, K)` with rows that sum to 1; 1/K by default.
        average: `outside` averages K pair losses, which is never below `inside` (Jensen).
    """
    z = beta * (anchors - ref_anchors) - alpha * (negative - ref_negative)[:, None]
    weight = torch.full_like(z, 1 / z.shape[1]) if share is None else share
    if average == "outside":
        return (weight * pairwise(z)).sum(1)
    return pairwise((weight * z).sum(1))


def kto_npo(logp: Tensor, ref_logp: Tensor, z: Tensor, beta: float = 0.1, squash: str = "logsigmoid") -> Tensor:
    """KTO as in the NPO paper's code: `1 - (2/beta) log sigmoid(z - beta (logp - ref_logp))`.

    `z` is the batch mean of the refusals' log-ratio, without gradient, neither scaled nor clamped.
    `squash="sigmoid"` is the code's other variant. With z = 0, logsigmoid gives NPO + 1.
    """
    inner = z - beta * (logp - ref_logp)
    return 1 - (2 / beta) * (F.logsigmoid(inner) if squash == "logsigmoid" else torch.sigmoid(inner))


def kto(
    logp: Tensor, ref_logp: Tensor, z: Tensor, desirable: bool | Tensor, beta: float = 0.1, weight: float | Tensor = 1.0
) -> Tensor:
    """KTO as published (Ethayarajh et al., 2024): `weight (1 - sigmoid(+-beta (r - z)))`, + if desirable.

    `z` is the clamped KL estimate `max(0, mean r)` over mismatched prompt-completion pairs, no gradient.
    `desirable` and `weight` are scalars or `(B,)`.
    """
    sign = 2 * torch.as_tensor(desirable, device=logp.device).to(logp) - 1
    return weight * (1 - torch.sigmoid(sign * beta * ((logp - ref_logp) - z)))


def simnpo(logp_mean: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """SimNPO (open-unlearning): `-(2/beta) log sigmoid(beta (nll_mean - delta))`; no reference.

    `logp_mean` is the MEAN over answer tokens, so long and short answers weigh the same.
    """
    return -(2 / beta) * F.logsigmoid(beta * (-logp_mean - delta))
