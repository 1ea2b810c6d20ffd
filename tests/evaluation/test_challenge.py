import numpy as np
import pytest

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import ChallengeWeights, challenge_score
from ecgfast.evaluation.challenge import score_terms
from ecgfast.evaluation.protocols import CINC2021_CLASSES
from tests.evaluation.made import cinc_index

N, A, B = range(3)
THREE = ChallengeWeights(("N", "A", "B"), np.array([[1, 0.5, 0.2], [0.4, 1, 0.3], [0.1, 0.6, 1]]), normal="N")


def sets(*records, n_classes=3):
    matrix = np.zeros((len(records), n_classes), dtype=int)
    for row, classes in enumerate(records):
        matrix[row, list(classes)] = 1
    return matrix


def plain_score(labels, outputs, weights):
    """The definition written again: the confusion matrix entry by entry, as the challenge's paper has it."""

    def total(told):
        confusion = np.zeros(weights.matrix.shape)
        for truth, output in zip(labels, told, strict=True):
            norm = max(sum(1 for j in range(len(truth)) if truth[j] or output[j]), 1)
            for j in range(len(truth)):
                for k in range(len(truth)):
                    if truth[j] and output[k]:
                        confusion[j, k] += 1 / norm
        return sum(
            weights.matrix[j, k] * confusion[j, k]
            for j in range(len(confusion))
            for k in range(len(confusion))
        )

    inactive = np.zeros_like(outputs)
    inactive[:, weights.classes.index(weights.normal)] = 1
    least, most = total(inactive), total(labels)
    return (total(outputs) - least) / (most - least)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_case_by_hand():
    labels = sets({A}, {N}, {A, B}, set())
    outputs = sets({A, B}, set(), {B}, {A})
    # Record 1: labels and outputs are A and B, 2 classes: observed (W[A,A] + W[A,B]) / 2 = (1 + .3) / 2
    #   correct W[A,A] / 1 = 1; normal alone: A and N are 2 classes, W[A,N] / 2 = .2
    # Record 2: nothing told: observed 0; correct W[N,N] = 1; normal alone is right: 1
    # Record 3: A and B, 2 classes: observed (W[A,B] + W[B,B]) / 2 = (.3 + 1) / 2 = .65
    #   correct (W[A,A] + W[A,B] + W[B,A] + W[B,B]) / 2 = (1 + .3 + .6 + 1) / 2 = 1.45
    #   normal alone: A, B and N are 3 classes, (W[A,N] + W[B,N]) / 3 = .5 / 3
    # Record 4: no label: 0 throughout
    want = [[0.65, 1, 0.2], [0, 1, 1], [0.65, 1.45, 0.5 / 3], [0, 0, 0]]
    np.testing.assert_allclose(score_terms(labels, outputs, THREE), want, atol=1e-15)
    # sums 1.3, 3.45 and 1.2 + 1/6; (1.3 - 41/30) / (3.45 - 41/30) = (-2/30) / (62.5/30) = -.032
    assert challenge_score(labels, outputs, THREE) == pytest.approx(-0.032, abs=1e-12)


def test_labels_themselves_score_one_and_normal_alone_zero():
    labels = sets({A}, {N}, {A, B}, {B, N})
    assert challenge_score(labels, labels, THREE) == pytest.approx(1, abs=1e-12)
    assert challenge_score(labels, sets({N}, {N}, {N}, {N}), THREE) == pytest.approx(0, abs=1e-12)
    assert challenge_score(labels, sets({B}, {B}, {N}, {A}), THREE) < 0


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_definition_written_again(seed):
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 9))
    weights = ChallengeWeights(
        tuple("abcdefgh"[:n_classes]), rng.uniform(-1, 1, (n_classes, n_classes)), normal="b"
    )
    labels, outputs = (rng.random((60, n_classes)) < share for share in (0.3, 0.4))
    assert challenge_score(labels, outputs, weights) == pytest.approx(
        plain_score(labels, outputs, weights), abs=1e-9
    )


def test_the_challenge_weights_and_real_labels(shared):
    weights = ChallengeWeights.read(shared("data/cinc2021") / "weights.csv")
    assert weights.classes == CINC2021_CLASSES
    assert sum("|" in name for name in weights.classes) == 4
    assert weights.synonyms["59118001"] == weights.synonyms["713427006"] == "713427006|59118001"
    index = cinc_index(shared("data/cinc"))
    labels = np.zeros((index.num_rows, 26), dtype=bool)
    for row, codes in enumerate(index["labels"].to_pylist()):
        for code in codes:
            if code in weights.synonyms:
                labels[row, weights.classes.index(weights.synonyms[code])] = True
    assert labels.any(axis=0).sum() > 10
    flips = np.random.default_rng(0).random(labels.shape) < 0.05
    got = challenge_score(labels, labels ^ flips, weights)
    assert got == pytest.approx(plain_score(labels, labels ^ flips, weights), abs=1e-9)
    assert challenge_score(labels, labels, weights) == pytest.approx(1, abs=1e-9)


def test_equivalent_classes_with_lines_of_their_own_are_merged(tmp_path):
    table = ",N,A,B,C\nN,1,.5,.5,.2\nA,.4,1,1,.3\nB,.4,1,1,.3\nC,.1,.6,.6,1\n"
    path = write(tmp_path / "weights.csv", table)
    weights = ChallengeWeights.read(path, normal="N", equivalent=[("A", "B"), ("X", "Y")])
    assert weights.classes == ("N", "A|B", "C")
    np.testing.assert_array_equal(weights.matrix, [[1, 0.5, 0.2], [0.4, 1, 0.3], [0.1, 0.6, 1]])
    assert ChallengeWeights.read(path, normal="N").classes == ("N", "A", "B", "C")
    other = write(tmp_path / "other.csv", table.replace("B,.4", "B,.5"))
    with pytest.raises(EcgfastError, match="must be the same for the equivalent classes A, B"):
        ChallengeWeights.read(other, normal="N", equivalent=[("A", "B")])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", "holds no table"),
        (",N,A\nN,1,0\n", "same classes in its lines"),
        (",N,A\nA,1,0\nN,0,1\n", "same classes in its lines"),
        (",N,N\nN,1,0\nN,0,1\n", "class N twice"),
        (",N,A\nN,1,0\nA,0\n", "another number of fields in line A"),
        (",N,A\nN,1,0\nA,0,high\n", "must have numbers"),
        (",N,A\nN,1,0\nA,0,nan\n", "finite numbers"),
        (",X,A\nX,1,0\nA,0,1\n", "must have the normal class N, got X, A"),
    ],
)
def test_bad_weights(tmp_path, text, want):
    path = write(tmp_path / "weights.csv", text)
    with pytest.raises(EcgfastError, match=want):
        ChallengeWeights.read(path, normal="N")


def test_bad_input(tmp_path):
    with pytest.raises(EcgfastError, match="can't read"):
        ChallengeWeights.read(tmp_path / "absent.csv")
    labels = sets({A}, {N})
    with pytest.raises(EcgfastError, match=r"labels: must have the 3 classes of the weights, got 2"):
        challenge_score(labels[:, :2], labels[:, :2], THREE)
    with pytest.raises(EcgfastError, match=r"outputs: must be 0 or 1, got 0\.5 in row 0, column 0"):
        challenge_score(labels, labels * 0.5 + 0.5, THREE)
    with pytest.raises(EcgfastError, match="score is not defined"):
        challenge_score(sets({N}, {N}), sets({A}, {N}), THREE)
