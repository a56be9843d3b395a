import pytest

from polypfed.core import errors


def test_a_message_is_where_what_and_the_way_out() -> None:
    error = errors.DataError("box 3 lies outside the image: x2=1.2", where="a/b.txt", remedy="Fix or delete that line")
    assert str(error) == "a/b.txt: box 3 lies outside the image: x2=1.2. Fix or delete that line"
    assert str(errors.ConfigError("is missing")) == "is missing"


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (errors.ConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.LayoutError, ValueError),
        (errors.MessageError, ValueError),
        (errors.StateError, Exception),
        (errors.QuorumError, Exception),
        (errors.CheckpointError, Exception),
        (errors.AuditError, Exception),
        (errors.BackendError, Exception),
    ],
)
def test_every_error_is_ours_and_what_python_users_expect(kind: type[errors.PolypfedError], also: type) -> None:
    with pytest.raises(also) as caught:
        raise kind("x", where="y")
    assert isinstance(caught.value, errors.PolypfedError)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    tree = errors.__doc__ or ""
    kinds = [n for n, k in vars(errors).items() if isinstance(k, type) and issubclass(k, errors.PolypfedError)]
    assert len(kinds) == 12
    assert all(name in tree for name in kinds)


def test_a_refusal_has_a_reason() -> None:
    assert errors.Refused("norm", "is too large", where="a").reason == "norm"
