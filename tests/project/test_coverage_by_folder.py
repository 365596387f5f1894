"""tools/coverage_by_folder.py: the table that `make coverage` prints."""

from tools.coverage_by_folder import by_folder, table


def file(statements: int, covered: int) -> dict[str, dict[str, int]]:
    return {"summary": {"num_statements": statements, "covered_lines": covered}}


REPORT = {
    "files": {
        "kvd/store/a.py": file(10, 9),
        "kvd/store/b.py": file(30, 11),
        "kv/c.py": file(4, 4),
        "kv/d.py": file(0, 0),
    }
}


def test_files_of_a_folder_add_up() -> None:
    assert by_folder(REPORT) == {"kvd/store": (40, 20), "kv": (4, 4)}


def test_the_table_has_a_line_for_each_folder_and_one_for_all() -> None:
    assert table(by_folder(REPORT)).splitlines() == [
        "folder     statements   missed  covered",
        "kv                  4        0   100.0 %",
        "kvd/store          40       20    50.0 %",
        "all                44       20    54.5 %",
    ]


def test_a_folder_without_statements_is_covered() -> None:
    assert "100.0 %" in table({"kv": (0, 0)})
