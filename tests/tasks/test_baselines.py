import gzip

import numpy as np
import pytest

from seqkit.errors import ShapeError
from seqkit.tasks import baselines as b
from seqkit.tasks.metrics import accuracy, auroc, average_precision, r2

FITTED = [b.linear, b.gradient_boosting]


def table(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 4))
    labels = (features[:, 0] + 0.3 * rng.normal(size=rows) > 0).astype(float)
    parts = np.split(rng.permutation(rows), [rows // 2, 3 * rows // 4])
    return features, labels, b.Rows(*parts)


@pytest.mark.parametrize("method", FITTED)
def test_finds_the_informative_feature_and_repeats_itself(method):
    features, labels, rows = table()
    result = method("m", features, labels, rows)
    assert result.name == "m"
    assert result.scores.shape == rows.test.shape
    assert result.validation.shape == rows.validation.shape
    assert auroc(labels[rows.test], result.scores) > 0.9
    assert auroc(labels[rows.validation], result.validation) > 0.9
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    assert result.seconds > 0
    np.testing.assert_array_equal(result.scores, method("m", features, labels, rows).scores)


@pytest.mark.parametrize("method", FITTED)
def test_test_rows_never_teach(method):
    features, labels, rows = table()
    honest = method("m", features, labels, rows)
    changed, altered = labels.copy(), features.copy()
    changed[np.r_[rows.test, rows.validation]] = 1 - changed[np.r_[rows.test, rows.validation]]
    altered[rows.validation] = 1e6
    np.testing.assert_array_equal(honest.scores, method("m", altered, changed, rows).scores)


@pytest.mark.parametrize("method", FITTED)
def test_missing_features_and_labels(method):
    features, labels, rows = table()
    features[::3, 1] = np.nan
    features[:, 2] = np.nan
    labels[rows.train[:20]] = np.nan
    result = method("m", features, labels, rows)
    assert np.isfinite(result.scores).all()
    assert auroc(labels[rows.test], result.scores) > 0.9


def test_missing_value_counts_as_the_training_mean():
    features, labels, rows = table()
    features[rows.test[0], 0] = np.nan
    filled = features.copy()
    filled[rows.test[0], 0] = features[rows.train, 0].mean()
    left, right = b.linear("m", features, labels, rows), b.linear("m", filled, labels, rows)
    np.testing.assert_allclose(left.scores, right.scores)


def test_linear_does_not_depend_on_the_unit():
    features, labels, rows = table()
    scaled = features * [1e-3, 1e3, 5, 1] + [7, 0, -3, 1e4]
    left, right = b.linear("m", features, labels, rows), b.linear("m", scaled, labels, rows)
    np.testing.assert_allclose(left.scores, right.scores, atol=1e-4)


@pytest.mark.parametrize("method", FITTED)
def test_classes_including_one_without_training_rows(method):
    features, _, rows = table()
    labels = np.digitize(features[:, 0], [-0.5, 0.5]).astype(float)
    result = method("m", features, labels, rows, kind="multiclass", classes=4)
    assert result.scores.shape == (len(rows.test), 4)
    np.testing.assert_allclose(result.scores.sum(axis=1), 1)
    assert (result.scores[:, 3] == 0).all()
    assert accuracy(labels[rows.test], result.scores) > 0.7


@pytest.mark.parametrize("method", FITTED)
def test_continuous_labels(method):
    features, _, rows = table()
    labels = 100 + 5 * features[:, 0]
    result = method("m", features, labels, rows, kind="continuous")
    assert r2(labels[rows.test], result.scores) > 0.8


@pytest.mark.parametrize("method", FITTED)
def test_one_class_in_training_gives_constant_scores_and_a_warning(method):
    features, labels, rows = table()
    labels[rows.train] = 1
    with pytest.warns(UserWarning, match="no two classes"):
        result = method("m", features, labels, rows)
    assert result.name == "m"
    assert (result.scores == 1).all()


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_no_feature_with_a_value_gives_constant_scores_and_a_warning(method, kind):
    features, labels, rows = table()
    with pytest.warns(UserWarning, match="no features"):
        result = method("m", np.full_like(features, np.nan), labels, rows, kind=kind)
    assert result.scores == pytest.approx(labels[rows.train].mean())


@pytest.mark.parametrize("method", FITTED)
def test_no_validation_rows(method):
    features, labels, rows = table()
    result = method("m", features, labels, rows._replace(validation=np.array([], dtype=int)))
    assert result.validation.shape == (0,)


def test_trinucleotide_features_by_hand():
    matrix, names = b.trinucleotide_features(["ACG", "acg", "ANG", "ACG", "ACG", ""], ["T", "t", "T", "C", "TT", "T"])
    assert matrix.shape == (6, 208)
    assert len(set(names)) == 208
    on = [names[i] for i in np.flatnonzero(matrix[0])]
    assert on == ["ACG>T", "before A", "reference C", "after G", "alternate T"]
    np.testing.assert_array_equal(matrix[0], matrix[1])
    assert (matrix[2:] == 0).all()


def test_trinucleotide_regression_learns_a_context():
    rng = np.random.default_rng(1)
    contexts = np.array(["".join(x) for x in rng.choice(list("ACGT"), (600, 3))])
    alternates = np.array([rng.choice([x for x in "ACGT" if x != c[1]]) for c in contexts])
    labels = np.array([c[1:] == "CG" for c in contexts], dtype=float)
    rows = b.Rows(np.arange(400), np.arange(400, 500), np.arange(500, 600))
    assert auroc(labels[rows.test], b.trinucleotide(contexts, alternates, labels, rows).scores) > 0.95


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_column_keeps_its_values_up_to_a_sign_from_training_rows(sign, kind):
    features, labels, rows = table()
    column = sign * features[:, 0]
    result = b.single_column("CADD", column, labels, rows, kind=kind)
    np.testing.assert_array_equal(result.scores, features[rows.test, 0])
    flipped = labels.copy()
    flipped[rows.test] = 1 - flipped[rows.test]
    np.testing.assert_array_equal(b.single_column("CADD", column, flipped, rows, kind=kind).scores, result.scores)


def test_missing_column_values_and_class_labels():
    features, labels, rows = table()
    column = features[:, 0].copy()
    column[rows.test[0]] = np.nan
    result = b.single_column("CADD", column, labels, rows)
    assert result.scores[0] == pytest.approx(column[rows.train].mean())
    classes = b.single_column("CADD", column, labels, rows, kind="multiclass", classes=2)
    assert classes.scores.shape == (len(rows.test), 2)


def test_neighbours_by_hand():
    rows = b.Rows(np.array([0, 1]), np.array([], dtype=int), np.array([2, 3]))
    result = b.neighbour_labels([10, 14, 11, 10_000], [1.0, 0.0, 1.0, 1.0], rows, scale=2.0)
    near, far = np.exp(-0.5), np.exp(-1.5)
    expected = (near + 1e-3 * 0.5) / (near + far + 1e-3)
    np.testing.assert_allclose(result.scores, [expected, 0.5])


def test_neighbours_stay_on_their_contig():
    rows = b.Rows(np.array([0, 1]), np.array([], dtype=int), np.array([2]))
    result = b.neighbour_labels([10, 900, 10], [1.0, 0.0, 0.0], rows, contigs=["1", "2", "2"])
    assert result.scores == pytest.approx([0.5])


def test_neighbours_show_the_leak_of_a_random_split_and_not_of_a_block_split():
    rng = np.random.default_rng(2)
    positions = np.repeat(np.arange(600), 3)
    labels = np.repeat(rng.integers(0, 2, 60), 30).astype(float)  # regions of 10 positions share a label
    order, third = rng.permutation(1800), 1800 // 3
    leaky = b.neighbour_labels(positions, labels, b.Rows(*np.split(order, [third * 2, third * 2])))
    assert auroc(labels[order[third * 2 :]], leaky.scores) > 0.9
    parts = b.Rows(np.arange(third), np.array([], dtype=int), np.arange(2 * third, 1800))
    assert auroc(labels[parts.test], b.neighbour_labels(positions, labels, parts).scores) == 0.5


def test_majority():
    _, labels, rows = table()
    assert (b.majority(labels, rows).scores == labels[rows.train].mean()).all()
    classes = b.majority(labels, rows, kind="multiclass", classes=3)
    np.testing.assert_allclose(classes.scores[0], [1 - labels[rows.train].mean(), labels[rows.train].mean(), 0])
    assert b.majority(labels * 9, rows, kind="continuous").scores[0] == pytest.approx(9 * labels[rows.train].mean())


def test_wrong_shapes_say_what_was_expected():
    features, labels, rows = table()
    with pytest.raises(ShapeError, match=r"\(300, F\)"):
        b.linear("m", features[:-1], labels, rows)
    with pytest.raises(ShapeError, match="alternates"):
        b.trinucleotide_features(["ACG"], ["T", "T"])


@pytest.fixture
def brca1(shared_data):
    """Measured variants on the coding strand: frame, labels, positions, exon folds, contexts and alternates."""
    polars = pytest.importorskip("polars")
    folder = shared_data / "brca1-sge-findlay2018"
    path = folder / "findlay2018_brca1_snvs.tsv.gz"
    frame = polars.read_csv(path, separator="\t", infer_schema_length=None, null_values=["NA"])
    exons = ["X2", "X3", "X4", "X5", *(f"X{k}" for k in range(15, 24))]
    position = frame["position (hg19)"].to_numpy()
    reference = gzip.decompress((folder / "brca1_hg19.txt.gz").read_bytes()).decode().upper()
    complement = str.maketrans("ACGT", "TGCA")
    contexts = [reference[at - 1 : at + 2].translate(complement)[::-1] for at in position - 41_100_001]
    return (
        frame,
        (frame["func.class"] == "LOF").to_numpy().astype(float),
        position,
        np.array([exons.index(x) % 5 for x in frame["experiment"]]),
        contexts,
        [base.translate(complement) for base in frame["alt"]],
    )


def mean_over_folds(fold, labels, method):
    values = []
    for k in range(5):
        rows = b.Rows(np.flatnonzero(fold != k), np.array([], dtype=int), np.flatnonzero(fold == k))
        scores = method(rows).scores
        values.append((auroc(labels[rows.test], scores), average_precision(labels[rows.test], scores)))
    return tuple(np.mean(values, axis=0))


def test_figures_measured_elsewhere_on_brca1_exon_folds(brca1):
    frame, labels, position, fold, contexts, alternates = brca1
    assert labels.sum() == 823
    columns = frame.select("CADD.score", "phyloP (mammalian)").to_numpy().astype(float)
    kinds = np.eye(7)[np.unique(frame["consequence"].to_numpy(), return_inverse=True)[1]]
    figures = {
        (0.500, 0.211): lambda rows: b.neighbour_labels(position, labels, rows),
        (0.807, 0.573): lambda rows: b.single_column("CADD", columns[:, 0], labels, rows),
        (0.777, 0.420): lambda rows: b.single_column("phyloP", columns[:, 1], labels, rows),
        (0.663, 0.339): lambda rows: b.trinucleotide(contexts, alternates, labels, rows),
        (0.755, 0.525): lambda rows: b.linear("consequence", kinds, labels, rows),
        (0.843, 0.622): lambda rows: b.gradient_boosting("phyloP + CADD", columns, labels, rows),
    }
    for expected, method in figures.items():
        assert mean_over_folds(fold, labels, method) == pytest.approx(expected, abs=0.003)


def test_split_by_position_leaks_labels_between_neighbours_of_brca1(brca1):
    _, labels, position, _, _, _ = brca1
    leak, _ = mean_over_folds(position % 5, labels, lambda rows: b.neighbour_labels(position, labels, rows))
    assert leak == pytest.approx(0.751, abs=0.003)
