"""The losses against numbers worked out by hand and against plain loops over tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.core.config import PIECE
from learners.core.logprobs import logprobs_and_entropy, logprobs_of
from learners.policy_gradient.losses import (
    effective_sample_share,
    explained_variance,
    importance_weights,
    kl_k1,
    kl_k3,
    kl_loss,
    policy_loss,
    value_loss,
)

finite = st.floats(-3, 3, allow_nan=False, width=32)
tokens = st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=12)
CLIP = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


def loop_policy_loss(rows, *, denominator, clip_low, clip_high, dual_clip):
    """rows: (log pi, log pi_prox, weight, advantage) per token."""
    total = 0.0
    for new, prox, weight, advantage in rows:
        ratio = math.exp(max(-20.0, min(20.0, new - prox)))
        held = max(1 - clip_low, min(1 + clip_high, ratio))
        surrogate = min(ratio * advantage, held * advantage)
        if advantage < 0 and dual_clip is not None:
            surrogate = max(surrogate, dual_clip * advantage)
        total += weight * surrogate
    return -total / denominator


def weights_of(prox, mu, rollout, method, **changes):
    options = {"method": method, "cap": 2.0, "icepop": (0.5, 2.0), "geometric_mask": None} | changes
    rollout = torch.tensor(rollout)
    weights, metrics = importance_weights(
        torch.tensor(prox), torch.tensor(mu), rollout, int(rollout.max()) + 1, **options
    )
    return weights.tolist(), metrics


def test_policy_loss_matches_hand_computed_values():
    # ratio 1.5 is held at 1.3 for A = 2; ratio 0.5 is held at 0.8 for A = -1; ratio 1 is free.
    ratios, advantages = torch.tensor([1.5, 0.5, 1.0]), torch.tensor([2.0, -1.0, 4.0])
    loss, metrics = policy_loss(
        ratios.log(), torch.zeros(3), torch.tensor([1.0, 1.0, 0.5]), advantages, denominator=3, **CLIP
    )
    assert loss.item() == pytest.approx(-(1.3 * 2 - 0.8 + 0.5 * 4) / 3, rel=1e-6)
    assert metrics["clip_fraction_high/mean"].item() == pytest.approx(1 / 3)
    assert metrics["clip_fraction_low/mean"].item() == pytest.approx(1 / 3)
    expected_kl = ((1.5 - 1 - math.log(1.5)) + (0.5 - 1 - math.log(0.5))) / 3
    assert metrics["update_kl/mean"].item() == pytest.approx(expected_kl, rel=1e-5)


def test_dual_clip_bounds_a_bad_token_that_became_likely():
    new = torch.tensor([math.log(10.0)], requires_grad=True)
    loss, metrics = policy_loss(new, torch.zeros(1), torch.ones(1), torch.tensor([-2.0]), denominator=1, **CLIP)
    assert loss.item() == pytest.approx(6.0)
    assert metrics["dual_clip_fraction/mean"].item() == 1.0
    loss.backward()
    assert new.grad.item() == 0.0


@settings(deadline=None, max_examples=30)
@given(tokens, st.sampled_from([None, 3.0]))
def test_policy_loss_matches_a_loop_over_tokens(rows, dual_clip):
    columns = torch.tensor(rows).T
    weights = columns[2].abs()
    options = CLIP | {"dual_clip": dual_clip}
    loss, _ = policy_loss(columns[0], columns[1], weights, columns[3], denominator=7.0, **options)
    looped = [(n, p, abs(w), a) for n, p, w, a in rows]
    assert loss.item() == pytest.approx(loop_policy_loss(looped, denominator=7.0, **options), rel=1e-4, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(tokens, st.integers(0, 12))
def test_microbatches_add_up_to_the_big_batch(rows, cut):
    columns = torch.tensor(rows).T.contiguous()
    cut = min(cut, len(rows))

    def gradient(slices):
        new = columns[0].clone().requires_grad_()
        total = 0.0
        for piece in slices:
            loss, _ = policy_loss(
                new[piece], columns[1][piece], columns[2][piece].abs(), columns[3][piece], denominator=5, **CLIP
            )
            value, _ = value_loss(new[piece], columns[1][piece], columns[2][piece], denominator=5, clip=0.5)
            (loss + value).backward()
            total += float((loss + value).detach())
        return total, new.grad

    whole, whole_gradient = gradient([slice(None)])
    parts, parts_gradient = gradient([slice(0, cut), slice(cut, None)])
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(parts_gradient, whole_gradient)


def test_a_masked_token_does_not_raise_the_weight_of_the_rest():
    new = torch.zeros(2, requires_grad=True)
    loss, _ = policy_loss(new, torch.zeros(2), torch.tensor([1.0, 0.0]), torch.ones(2), denominator=2, **CLIP)
    loss.backward()
    assert new.grad.tolist() == [-0.5, 0.0]


def test_importance_weights_match_hand_computed_values():
    ratio = [0.25, 1.0, 3.0, 0.9]
    prox, mu, rollout = [math.log(r) for r in ratio], [0.0] * 4, [0, 0, 1, 1]
    assert weights_of(prox, mu, rollout, "token")[0] == pytest.approx([0.25, 1.0, 2.0, 0.9])
    assert weights_of(prox, mu, rollout, "icepop")[0] == pytest.approx([0.0, 1.0, 0.0, 0.9])
    assert weights_of(prox, mu, rollout, "sequence")[0] == pytest.approx([0.25, 0.25, 2.0, 2.0])
    assert weights_of(prox, mu, rollout, "none")[0] == [1.0] * 4
    _, metrics = weights_of(prox, mu, rollout, "token")
    assert metrics["importance_clipped/share"].item() == pytest.approx(0.25)
    expected = sum(r - 1 - math.log(r) for r in ratio) / 4
    assert metrics["mismatch_kl/mean"].item() == pytest.approx(expected, rel=1e-5)


def test_outliers_and_drifted_rollouts_are_masked():
    prox, mu = [math.log(1e-5), math.log(101.0), math.log(1.05), 0.0], [0.0] * 4
    weights, metrics = weights_of(prox, mu, [0, 1, 2, 3], "token")
    assert weights == pytest.approx([0.0, 0.0, 1.05, 1.0])
    assert metrics["outlier/share"].item() == 0.5
    weights, _ = weights_of(prox, mu, [0, 1, 2, 3], "token", geometric_mask=0.01)
    assert weights == pytest.approx([0.0, 0.0, 0.0, 1.0])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=10))
def test_importance_weights_carry_no_gradient_and_stay_bounded(rows):
    prox, mu = torch.tensor(rows).T.contiguous()
    prox.requires_grad_()
    for method in ("token", "icepop", "sequence"):
        weights, metrics = importance_weights(
            prox, mu, torch.zeros(len(rows), dtype=torch.long), 1,
            method=method, cap=2.0, icepop=(0.5, 2.0), geometric_mask=None,
        )  # fmt: skip
        assert not weights.requires_grad
        assert bool(((weights >= 0) & (weights <= 2.0 + 1e-6)).all())
        assert 0.0 <= metrics["ess/mean"].item() <= 1.0 + 1e-6
        assert metrics["mismatch_kl/mean"].item() >= -1e-6


def test_effective_sample_share_is_one_for_equal_weights_and_1_over_n_for_one():
    assert effective_sample_share(torch.full((4,), 0.3)).item() == pytest.approx(1.0)
    assert effective_sample_share(torch.tensor([0.0, 0.0, 5.0, 0.0])).item() == pytest.approx(0.25)
    assert effective_sample_share(torch.zeros(3)).item() == 0.0


def test_value_loss_matches_hand_computed_values():
    values, old, returns = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.9]), torch.tensor([2.0, 3.5])
    loss, _ = value_loss(values, old, returns, denominator=2, clip=None)
    assert loss.item() == pytest.approx(0.5 * (1.0 + 0.25) / 2)
    # The first value moved by 1.0 > 0.5: held at 0.5 its error is 1.5^2.
    loss, metrics = value_loss(values, old, returns, denominator=2, clip=0.5)
    assert loss.item() == pytest.approx(0.5 * (2.25 + 0.25) / 2)
    assert metrics["value_clip_fraction/mean"].item() == 0.5


def test_kl_estimates_have_the_true_mean():
    pi, reference = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    true = (pi * (pi / reference).log()).sum().item()
    for estimate in (kl_k1, kl_k3):
        assert (pi * estimate(pi.log(), reference.log())).sum().item() == pytest.approx(true, rel=1e-5)
    assert bool((kl_k3(pi.log(), reference.log()) >= 0).all())


def three_tokens(estimator, logits, reference, mu, *, prox_logits=None, exact_weights=True):
    """The loss's gradient summed over all three tokens, each as likely as mu draws it; and the true gradient of
    KL(pi || reference) with it."""
    found, true = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    prox = (logits if prox_logits is None else prox_logits).log_softmax(-1)
    weights = (prox - mu.log()).exp() if exact_weights else torch.ones(3, dtype=logits.dtype)
    for token in range(3):
        loss, _ = kl_loss(
            found.log_softmax(-1)[token, None], prox[token, None], weights[token, None], reference.log()[token, None],
            denominator=1, estimator=estimator,
        )  # fmt: skip
        (mu[token] * loss).backward()
    logprobs = true.log_softmax(-1)
    (logprobs.exp() * (logprobs - reference.log())).sum().backward()
    return found.grad, true.grad


def likeness(found, true):
    """Cosine of the two and the ratio of their lengths."""
    return float(torch.cosine_similarity(found, true, 0)), float(found.norm() / true.norm())


REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
NEAR = (REFERENCE * torch.tensor([1.1, 0.95, 1.0], dtype=torch.float64)).log()
FAR = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
PEAKED = torch.tensor([4.0, -1.0, 0.0], dtype=torch.float64)
OTHER = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)


somewhere = pytest.mark.parametrize("logits", [NEAR, FAR, PEAKED], ids=["near", "far", "peaked"])


@somewhere
@pytest.mark.parametrize("on_policy", [True, False])
def test_the_kl_in_the_loss_has_the_gradient_of_the_kl_on_policy_and_off(logits, on_policy):
    mu = logits.softmax(-1) if on_policy else OTHER
    for prox_logits in (logits, logits + torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)):
        cosine, ratio = likeness(*three_tokens("weighted", logits, REFERENCE, mu, prox_logits=prox_logits))
        assert cosine == pytest.approx(1.0, abs=1e-9)
        assert ratio == pytest.approx(1.0, abs=1e-9)


@somewhere
def test_k2_is_exact_on_policy_and_only_there(logits):
    cosine, ratio = likeness(*three_tokens("k2", logits, REFERENCE, logits.softmax(-1)))
    assert (cosine, ratio) == pytest.approx((1.0, 1.0), abs=1e-9)
    cosine, ratio = likeness(*three_tokens("k2", logits, REFERENCE, OTHER))
    assert cosine < 0.99 or not 0.5 < ratio < 2


def test_k3_alone_has_the_gradient_of_the_divergence_the_other_way():
    found, true = three_tokens("k3", FAR, REFERENCE, FAR.softmax(-1))
    logits = FAR.clone().requires_grad_()
    (REFERENCE * (REFERENCE.log() - logits.log_softmax(-1))).sum().backward()
    torch.testing.assert_close(found, logits.grad)
    assert likeness(found, true) == pytest.approx((0.922, 1.26), abs=0.01)
    assert likeness(*three_tokens("k3", PEAKED, REFERENCE, PEAKED.softmax(-1)))[1] > 2


def test_the_live_ratio_times_k3_differentiated_as_it_stands_gives_the_same_slope():
    pi = torch.tensor([-0.2, -3.0, -6.0], dtype=torch.float64, requires_grad=True)
    mu, reference = pi.detach() + torch.tensor([0.3, -0.4, 0.0]), pi.detach() + torch.tensor([-1.0, 2.0, 0.5])
    ((pi - mu).exp() * kl_k3(pi, reference)).sum().backward()
    expected = pi.grad.clone()
    pi.grad = None
    kl_loss(pi, mu, torch.ones(3), reference, denominator=1, estimator="weighted")[0].backward()
    torch.testing.assert_close(pi.grad, expected)


@pytest.mark.parametrize("estimator", ["weighted", "k2", "k3"])
def test_one_token_far_from_its_reference_pulls_with_a_bounded_gradient_and_never_with_none(estimator):
    gaps = torch.tensor([-40.0, -9.9, -2.0, 2.0, 9.9, 40.0])
    new = torch.full((6,), -50.0, requires_grad=True)
    loss, metrics = kl_loss(new, new.detach(), torch.ones(6), new.detach() - gaps, denominator=1, estimator=estimator)
    loss.backward()
    assert new.grad.abs().max().item() <= 10.0
    assert new.grad.abs().min().item() > 0.5
    assert torch.equal(new.grad.sign(), gaps.sign())
    assert math.isfinite(metrics["kl_loss/mean"].item())


@pytest.mark.parametrize("estimator", ["weighted", "k2", "k3"])
def test_a_masked_token_has_no_kl_gradient_and_is_in_no_estimate(estimator):
    new = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference = torch.tensor([-1.5, -4.0])
    loss, metrics = kl_loss(new, new.detach(), torch.tensor([1.0, 0.0]), reference, denominator=2, estimator=estimator)
    loss.backward()
    assert new.grad[1].item() == 0.0
    assert new.grad[0].item() > 0.0
    assert metrics["kl_loss/mean"].item() < 0.1


def test_an_outlier_drops_its_rollout_where_the_product_is_the_weight():
    prox, mu = [math.log(1e-6), 0.0, 0.1, math.log(200.0), 0.0, 0.0], [0.0] * 6
    weights, metrics = weights_of(prox, mu, [0, 0, 1, 1, 2, 2], "sequence")
    assert weights == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert metrics["outlier/share"].item() == pytest.approx(4 / 6)
    weights, metrics = weights_of(prox, mu, [0, 0, 1, 1, 2, 2], "token")
    assert weights == pytest.approx([0.0, 1.0, math.exp(0.1), 0.0, 1.0, 1.0])
    assert metrics["outlier/share"].item() == pytest.approx(2 / 6)


def test_the_mean_weight_and_the_sample_size_know_every_mask():
    weights, metrics = weights_of([0.0] * 4, [0.0] * 4, [0, 0, 1, 1], "token", masked_N=torch.tensor([1, 0, 0, 1]) > 0)
    assert weights == [0.0, 1.0, 1.0, 0.0]
    assert metrics["importance/mean"].item() == 0.5
    assert metrics["ess/mean"].item() == 0.5


def test_a_value_within_its_bound_is_not_reported_as_clipped():
    generator = torch.Generator().manual_seed(0)
    old, step = torch.randn(1000, generator=generator), 0.1 * torch.rand(1000, generator=generator)
    values = (old + step).requires_grad_()
    loss, metrics = value_loss(values, old, torch.randn(1000, generator=generator), denominator=1000, clip=0.2)
    assert metrics["value_clip_fraction/mean"].item() == 0.0
    loss.backward()
    assert bool((values.grad != 0).all())


def test_values_of_masked_tokens_are_not_regressed():
    values = torch.tensor([1.0, 5.0], requires_grad=True)
    loss, _ = value_loss(
        values,
        torch.zeros(2),
        torch.tensor([0.0, -100.0]),
        denominator=2,
        clip=None,
        kept_N=torch.tensor([True, False]),
    )
    loss.backward()
    assert values.grad.tolist() == [0.5, 0.0]


def test_log_probs_and_entropy_match_loops():
    logits, token = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 6, 3, 3, 1])
    logprobs, entropy = logprobs_and_entropy(logits, token)
    torch.testing.assert_close(logprobs, logprobs_of(logits, token))
    for n in range(5):
        total = sum(math.exp(x) for x in logits[n].tolist())
        p = [math.exp(x) / total for x in logits[n].tolist()]
        assert logprobs[n].item() == pytest.approx(math.log(p[int(token[n])]), rel=1e-5)
        assert entropy[n].item() == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("terms", ["logprob", "entropy", "both"])
def test_log_probs_and_entropy_have_the_gradient_of_plain_autograd_in_every_piece(monkeypatch, terms, temperature):
    monkeypatch.setitem(PIECE, "cpu", 14)  # two rows at a time, and one left over
    generator = torch.Generator().manual_seed(0)
    token, weight = torch.tensor([0, 6, 3, 3, 1]), torch.randn(5, generator=generator)
    ours = torch.randn(5, 7, generator=generator).requires_grad_()
    plain = ours.detach().clone().requires_grad_()
    logprobs_N, entropy_N = logprobs_and_entropy(ours, token, temperature)
    whole_NV = (plain / temperature).log_softmax(-1)
    expected = whole_NV.gather(1, token[:, None])[:, 0], -(whole_NV.exp() * whole_NV).sum(-1)
    torch.testing.assert_close((logprobs_N, entropy_N), expected)
    for found_N, expected_N in zip((logprobs_N, entropy_N), expected, strict=True):
        if terms == "both" or (terms == "entropy") == (found_N is entropy_N):
            (found_N * weight).sum().backward(retain_graph=True)
            (expected_N * weight).sum().backward(retain_graph=True)
    torch.testing.assert_close(ours.grad, plain.grad)


def test_log_probs_of_16_bit_logits_are_computed_in_32_bits_and_their_gradient_has_16():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    token = torch.arange(5)
    found_N = logprobs_of(logits, token)
    assert torch.equal(found_N, logits.float().log_softmax(-1).gather(1, token[:, None])[:, 0])
    found_N.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant():
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(torch.full((3,), 9.0), returns).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(returns, torch.ones(3)).item() == 0.0
