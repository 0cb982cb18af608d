from __future__ import annotations

import itertools

from llmkit.model.batches import PASS, TOKENS, least_work, longest_first, pass_cost, to_read

LENGTHS = [3, 7, 3, 5, 3, 7]


def test_batches_are_longest_first_and_of_one_length_where_asked():
    assert longest_first(LENGTHS, 4) == [[1, 5, 3, 0], [2, 4]]
    assert longest_first(LENGTHS, 2, equal=True) == [[1, 5], [3], [0, 2], [4]]
    assert longest_first([], 2, equal=True) == []


def test_rows_to_be_read_are_bounded_by_tokens_unless_a_size_is_asked_for(model):
    assert to_read(model, LENGTHS, 4) == [[1, 5, 3, 0], [2, 4]]
    assert to_read(model, LENGTHS, None) == [[1, 5, 3, 0, 2, 4]]
    many = [TOKENS // 2] * 3 + [1, 0]
    assert to_read(model, many, None) in ([[0, 1], [2], [3, 4]], [[0], [1, 2], [3, 4]])
    assert pass_cost(model.to("meta")) == PASS


def test_an_outlier_is_alone_where_padding_to_it_costs_more_than_a_batch():
    lengths = [10, 100, 12, 11]
    assert least_work(lengths, batch_cost=200, tokens=10_000, most=64) == [[1], [2, 3, 0]]
    # 100 + 36 + 2 batches against 400 + 1 batch: they break even at 264.
    assert least_work(lengths, batch_cost=265, tokens=10_000, most=64) == [[1, 2, 3, 0]]
    assert least_work(lengths, batch_cost=265, tokens=10_000, most=2) == [[1, 2], [3, 0]]
    assert least_work(lengths, batch_cost=265, tokens=399, most=64) == [[1], [2, 3, 0]]
    assert least_work([200, 200], batch_cost=1, tokens=100, most=64) == [[0], [1]], "longer rows are alone"
    assert least_work([], batch_cost=1, tokens=100, most=64) == []
    assert least_work([5, 5, 4], batch_cost=99, tokens=100, most=64, equal=True) == [[0, 1], [2]]


def test_no_other_batches_of_neighbours_cost_less():
    lengths = [30, 29, 17, 16, 16, 5, 4, 2, 1]

    def cost(batches):
        return sum(20 + lengths[batch[0]] * len(batch) for batch in batches)

    def allowed(batch):
        return len(batch) <= 4 and (len(batch) == 1 or lengths[batch[0]] * len(batch) <= 60)

    every = []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        batches = [[0]]
        for i, cut in enumerate(cuts, start=1):
            if cut:
                batches.append([])
            batches[-1].append(i)
        if all(map(allowed, batches)):
            every.append(cost(batches))
    assert cost(least_work(lengths, batch_cost=20, tokens=60, most=4)) == min(every)
    assert min(every) < max(every)
