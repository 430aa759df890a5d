"""One Lance dataset: batches in, batches out, and commits that fail if another program was faster.

The only module that imports Lance. What it relies on stands in `tests/integration/store/test_lance.py`.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.errors import OutputDamagedError, OutputUnavailableError, UsageError
from clipfleet.s3.client import SCHEME
from clipfleet.s3.object_store import storage_options
from clipfleet.store.conditions import condition_of
from clipfleet.store.place_errors import lance_errors

if TYPE_CHECKING:
    import lance
    import numpy as np

# Newer ones exist; all readers that are named in the documentation know this one.
_FORMAT: Final = "2.1"
_ROWS_PER_FILE = 1 << 18  # 256 MiB of vectors of length 512: a file is rewritten as a whole
_ROWS_PER_BATCH = 4096
_BYTES_AHEAD = 64 << 20  # a scan reads ahead; Lance's default is 2 GiB
_ROW_BITS = 32  # of an address: fragment, then the position in it
_SIGN_OF_LIFE_SECONDS = 5.0
_DATA, _INDICES = "data/", "_indices/"  # `_DATA` has the files of rows
_NO_VERSION = 0  # versions are counted from 1 on; Lance takes no empty list

SIMILARITY: Final = "similarity"
_VECTORS: Final = "embedding"
_DISTANCE, _QUERY = "_distance", "query_index"  # columns that Lance adds
_METRIC, _INDEX = "cosine", "embedding"
# Of those that Lance has, the one with the best recall and the shortest build: half the size of the vectors.
_INDEX_KIND = "IVF_SQ"
_QUERIES_AT_A_TIME = 256
_REFINE_FACTOR = 10  # an index finds so many candidates for each row asked for; their vectors decide

# What a compaction commits: ids of fragments that it reserves, which has no class of its own in Python, and
# the new fragments. Lance takes no properties for them.
_OF_COMPACTIONS: Final = ("BaseOperation", "Rewrite")
_COMPACTED: Final = {"kind": "compact"}

Alive = Callable[[], object]


class VersionConflictError(Exception):
    """Another program has committed a version meanwhile: read again, and repeat."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a dataset."""

    number: int
    at: datetime  # UTC
    properties: Mapping[str, str]  # that its commit was given


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """What an index of vectors is."""

    kind: str  # as Lance calls it
    rows: int  # that it covers; others are searched one by one
    stored_bytes: int


class VectorDataset:
    """A dataset at one version. Reads are repeatable; a commit yields a new object. Thread-safe."""

    def __init__(self, dataset: lance.LanceDataset, uri: str) -> None:
        self._dataset = dataset
        self.uri = uri

    @classmethod
    def create(cls, uri: str, schema: pa.Schema) -> VectorDataset:
        """Create an empty dataset, or open the one that is there.

        Args:
            uri: absolute path, or `s3://` URI.
            schema: of a new dataset.

        Raises:
            OutputUnavailableError: the place cannot be written, or the dataset there cannot be read.
        """
        import lance

        with lance_errors(uri):
            try:
                made = lance.write_dataset(
                    schema.empty_table(),
                    uri,
                    schema=schema,
                    mode="create",
                    data_storage_version=_FORMAT,
                    storage_options=storage_options(uri),
                )
            except OSError as error:
                if "already exists" not in str(error):
                    raise
                return cls.open(uri)
        return cls(made, uri)

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> VectorDataset:
        """Open a dataset at a version, by default the newest.

        Raises:
            FileNotFoundError: there is none.
            UsageError: it has no such version (any more).
            OutputUnavailableError: it cannot be read, or it is a clone with files elsewhere.
        """
        import lance

        with lance_errors(uri):
            try:
                found = lance.dataset(uri, version=version, storage_options=storage_options(uri))
            except (ValueError, OSError) as error:
                if version is None and "not found" in str(error).lower():
                    raise FileNotFoundError(uri) from error
                if version is not None and version not in cls.open(uri).times():
                    raise UsageError(
                        f"{uri} has no version {version} (any more): `clipfleet store log` lists those that "
                        "are left"
                    ) from error
                raise
        if found._ds.base_paths():
            raise OutputDamagedError(f"{uri} has files elsewhere, which a store never has: not opened")
        return cls(found, uri)

    def latest(self) -> VectorDataset:
        """The same dataset at its newest version."""
        return self.open(self.uri)

    @property
    def version(self) -> int:
        """The number of this version; 1 is empty."""
        return int(self._dataset.version)

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        return self._dataset.schema

    def count(self, where: str | None = None) -> int:
        """Number of rows, or of those that a condition holds for. Raises like `batches`."""
        with self._errors(), condition_of(where, self.schema.names) as condition:
            return int(self._dataset.count_rows(filter=condition))

    def batches(
        self,
        columns: Sequence[str],
        *,
        where: str | None = None,
        with_address: bool = False,
        other_than: VectorDataset | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """All rows in the order of their addresses, in bounded memory.

        Args:
            columns: of the result.
            where: a condition on columns, in SQL.
            with_address: add the column `_rowaddr` (uint64), see `take`.
            other_than: leave out fragments that this version has unchanged: their rows are equal.

        Raises:
            UsageError: the condition is invalid.
            OutputUnavailableError: a file is missing or unreadable.
        """
        with self._errors(), condition_of(where, self.schema.names) as condition:
            fragments = None if other_than is None else self._fragments_unlike(other_than)
            if fragments == []:
                return
            scanner = self._dataset.scanner(
                columns=[*columns],
                filter=condition,
                batch_size=_ROWS_PER_BATCH,
                io_buffer_size=_BYTES_AHEAD,
                batch_readahead=4,
                fragment_readahead=1,
                scan_in_order=True,
                with_row_address=with_address,
                fragments=fragments,
            )
            yield from scanner.to_batches()

    def _fragments_unlike(self, other: VectorDataset) -> list[lance.LanceFragment]:
        there = {_identity(one) for one in other._dataset.get_fragments()}
        return [one for one in self._dataset.get_fragments() if _identity(one) not in there]

    def take(self, addresses: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The rows at these addresses (uint64), in their order."""
        with self._errors():
            found = self._dataset._take_rows(addresses.tolist(), columns=[*columns])
        return pa.table(found)

    def slice(self, offset: int, rows: int, columns: Sequence[str]) -> pa.Table:
        """So many rows from a position in the order of `batches` on."""
        with self._errors():
            found: pa.Table = self._dataset.to_table(
                columns=[*columns], offset=offset, limit=rows, scan_in_order=True
            )
        return found

    def at(self, positions: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The rows at these positions in the order of `batches`, in their order."""
        with self._errors():
            found: pa.Table = self._dataset.take(positions.tolist(), columns=[*columns])
        return found

    def nearest(
        self,
        vectors: np.ndarray,
        k: int,
        columns: Sequence[str],
        *,
        where: str | None = None,
        exact: bool = False,
    ) -> list[pa.Table]:
        """For each of some vectors the `k` rows with the most similar ones, most similar first.

        Args:
            vectors: float32 (queries, dimension), which Lance rounds to float16 as those of the rows are; an
                exact search reads the column once for all of them.
            k: rows for each; fewer if there are no more.
            columns: of the result, which also has `SIMILARITY`: the cosine, float32.
            where: as of `batches`: only rows that it holds for are searched.
            exact: use no index. Without one each search is exact, and so is that of rows that have been
                written since the index was built.

        Raises:
            UsageError: the condition is invalid.
            OutputUnavailableError: a file is missing or unreadable.
        """
        import numpy as np

        wanted = np.ascontiguousarray(vectors, np.float32)
        found: list[pa.Table] = []
        for start in range(0, len(wanted), _QUERIES_AT_A_TIME):
            some = wanted[start : start + _QUERIES_AT_A_TIME]
            with self._errors(), condition_of(where, self.schema.names) as condition:
                scanner = self._dataset.scanner(
                    columns=[*columns, _DISTANCE],
                    nearest={
                        "column": _VECTORS, "q": some if len(some) > 1 else some[0], "k": k,
                        "metric": _METRIC, "use_index": not exact, "refine_factor": _REFINE_FACTOR,
                    },
                    filter=condition,
                    prefilter=True,
                    io_buffer_size=_BYTES_AHEAD,
                    disable_scoring_autoprojection=True,
                )  # fmt: skip
                rows = pa.Table.from_batches(scanner.to_batches(), scanner.projected_schema)
            found += _by_query(rows, len(some))
        return found

    def create_index(self, properties: Mapping[str, str], *, alive: Alive = lambda: None) -> VectorDataset:
        """Commit a version with an index of the vectors, in place of an earlier one.

        Args:
            properties: kept with the version, see `versions`.
            alive: called often; what it raises ends the build.

        Raises:
            VersionConflictError: another program has changed the dataset in a way that does not fit.
            OutputUnavailableError: the index cannot be written.
        """
        import lance
        from lance import LanceOperation
        from lance.dataset import Index

        with self._errors():
            made = self._dataset.create_index_uncommitted(
                _VECTORS,
                _INDEX_KIND,
                name=_INDEX,
                metric=_METRIC,
                replace=True,
                fragment_ids=[one.fragment_id for one in self._dataset.get_fragments()],
                storage_options=storage_options(self.uri),
                progress_callback=lambda _: alive(),
            )
            alive()
            earlier = [
                Index(
                    one.uuid, _INDEX, made.fields, one.dataset_version_at_last_update, one.fragment_ids,
                    one.index_version,
                )
                for index in self._dataset.describe_indices()
                if index.name == _INDEX
                for one in index.segments
            ]  # fmt: skip
            return self._commit(
                lance.Transaction(
                    read_version=self.version,
                    operation=LanceOperation.CreateIndex([made], earlier),
                    transaction_properties={**properties},
                )
            )

    def index_facts(self) -> IndexFacts | None:
        """What the index of this version is; None if there is none."""
        with self._errors():
            for one in self._dataset.describe_indices():
                if one.name == _INDEX:
                    return IndexFacts(one.index_type, one.num_rows_indexed, one.total_size_bytes or 0)
        return None

    def replace(
        self,
        gone: np.ndarray,
        fresh: Iterable[pa.RecordBatch],
        properties: Mapping[str, str],
        *,
        alive: Alive = lambda: None,
    ) -> VectorDataset:
        """Commit a version without some rows, and with others. Rows are written before anything is visible.

        A version that another program has committed since this one refuses the commit; files that were
        written for it are removed by `drop_versions`.

        Args:
            gone: addresses of rows of this version (uint64).
            fresh: further rows, with the columns of the dataset; read once.
            properties: kept with the version, see `versions`.
            alive: called after each batch; what it raises ends the commit.

        Raises:
            VersionConflictError: another program was faster.
            OutputUnavailableError: the rows cannot be written.
        """
        with self._errors():
            left, emptied = self._without(gone, alive)
            return self._replace(left, emptied, fresh, properties, alive)

    def _replace(
        self,
        left: Sequence[Any],
        removed: Sequence[int],
        fresh: Iterable[pa.RecordBatch],
        properties: Mapping[str, str],
        alive: Alive,
    ) -> VectorDataset:
        import lance
        from lance import LanceOperation
        from lance.fragment import write_fragments

        watched = _Watched(fresh, alive)
        with watched.raising_its_own():
            written = write_fragments(
                pa.RecordBatchReader.from_batches(self.schema, watched.batches()),
                self._dataset,
                schema=self.schema,
                max_rows_per_file=_ROWS_PER_FILE,
                storage_options=storage_options(self.uri),
            )
        # All fragments are named, changed or not: any other commit since then is a conflict. Without any
        # fragment only a merge is one.
        operation: LanceOperation.BaseOperation = (
            LanceOperation.Update(
                removed_fragment_ids=[*removed], updated_fragments=[*left], new_fragments=written
            )
            if left or removed
            else LanceOperation.Merge(_numbered(written), self._dataset.lance_schema)
        )
        return self._commit(
            lance.Transaction(
                read_version=self.version, operation=operation, transaction_properties={**properties}
            )
        )

    def _without(self, gone: np.ndarray, alive: Alive) -> tuple[list[Any], list[int]]:
        """The fragments without these rows, and the ids of those that have none left."""
        import numpy as np

        ordered = np.sort(gone.astype(np.uint64))
        numbers, starts = np.unique(ordered >> np.uint64(_ROW_BITS), return_index=True)
        groups = np.split(ordered & np.uint64((1 << _ROW_BITS) - 1), starts[1:]) if len(ordered) else []
        of_fragment = dict(zip(numbers.tolist(), groups, strict=True))
        left, emptied = [], []
        for fragment in self._dataset.get_fragments():
            offsets = of_fragment.get(fragment.fragment_id)
            changed = fragment.metadata if offsets is None else fragment.delete_rows(offsets.tolist())
            if changed is None:
                emptied.append(fragment.fragment_id)
            else:
                left.append(changed)
            alive()
        return left, emptied

    def with_columns(self, fields: Sequence[pa.Field[Any]], properties: Mapping[str, str]) -> VectorDataset:
        """Commit a version with further columns, all null. Raises like `replace`."""
        import lance
        from lance import LanceOperation
        from lance.schema import LanceSchema

        schema = pa.schema([*self.schema, *fields])
        with self._errors():
            found = LanceSchema.from_pyarrow(schema)
            fragments = [one.metadata for one in self._dataset.get_fragments()]
            return self._commit(
                lance.Transaction(
                    read_version=self.version,
                    operation=LanceOperation.Merge(fragments, found),
                    transaction_properties={**properties},
                )
            )

    def _commit(self, transaction: lance.Transaction) -> VectorDataset:
        import lance

        with _conflicts():
            made = lance.LanceDataset.commit(
                self._dataset, transaction, max_retries=0, storage_options=storage_options(self.uri)
            )
        return VectorDataset(made, self.uri)

    def versions(self, *, after: int = 0) -> Iterator[Version]:
        """The versions that are left, oldest first, with what their commits were given: each costs a read.

        Args:
            after: without this version and earlier ones.
        """
        for number, at in self.times().items():
            if number > after:
                try:
                    with lance_errors(self.uri):
                        properties = self._properties(number)
                except OutputDamagedError:
                    if number in self.times():  # else it was removed meanwhile
                        raise
                else:
                    yield Version(number, at, properties)

    def times(self) -> Mapping[int, datetime]:
        """When each version that is left was committed (UTC), oldest first."""
        with lance_errors(self.uri):
            found = {
                int(one["version"]): _as_utc(cast(datetime, one["timestamp"]))
                for one in self._dataset.versions()
            }
        return dict(sorted(found.items()))

    @property
    def committed_at(self) -> datetime:
        """When this version was committed (UTC)."""
        try:
            return self.times()[self.version]
        except KeyError:
            raise self._removed() from None

    def stored_bytes(self) -> int:
        """Size of all files, those of other versions included."""
        with self._errors():
            return sum(sum(batch["size_bytes"].to_pylist()) for batch in self._dataset.all_files())

    def _properties(self, version: int) -> Mapping[str, str]:
        try:
            found = self._dataset.read_transaction(version)
        except TypeError as error:
            if "RewrittenIndex" not in str(error):
                raise
            return _COMPACTED  # Lance cannot tell Python how a compaction has rewritten an index
        if found is None:
            return {}
        if type(found.operation).__name__ in _OF_COMPACTIONS:
            return _COMPACTED
        return dict(found.transaction_properties or {})

    @property
    def properties(self) -> Mapping[str, str]:
        """What the commit of this version was given."""
        with self._errors():
            return self._properties(self.version)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """See `lance_errors`; of files that are missing since this version was removed it says so."""
        try:
            with lance_errors(self.uri):
                yield
        except (OutputDamagedError, FileNotFoundError) as error:
            try:
                is_there = self.version in self.open(self.uri).times()
            except FileNotFoundError:
                raise OutputUnavailableError(
                    f"{self.uri} was removed meanwhile (`clipfleet store vacuum`), or its disk is not "
                    "mounted: run it again"
                ) from error
            if is_there:
                raise
            raise self._removed() from error

    def _removed(self) -> OutputUnavailableError:
        return OutputUnavailableError(
            f"{self.uri}: version {self.version} was removed meanwhile (`clipfleet store vacuum` or "
            "`forget`): run it again"
        )

    # --- Maintenance: of files, the rows stay the same ---

    def compact(self, *, alive: Alive = lambda: None) -> VectorDataset:
        """Commit a version with fewer files: small ones together, and without the rows that are deleted.

        A fragment is rewritten if it is small and beside another one, or a tenth of it is deleted. The rows
        and their order stay, the addresses do not. Takes memory for some thousand rows.

        Args:
            alive: called every few seconds; what it raises ends the compaction, and nothing is changed.

        Returns:
            This object if there is nothing to do.

        Raises:
            VersionConflictError: another program was faster.
            OutputUnavailableError: the dataset cannot be read or written.
        """
        from lance.optimize import Compaction

        options: Any = {
            "target_rows_per_fragment": _ROWS_PER_FILE,
            "batch_size": _ROWS_PER_BATCH,
            "num_threads": 1,
            "io_buffer_size": _BYTES_AHEAD,
        }
        own = self.open(self.uri, self.version)._dataset  # the commit moves it to the next version
        with self._errors():
            tasks = Compaction.plan(own, options).tasks
            rewritten = [_alive_during(partial(task.execute, own), alive) for task in tasks]
            if not rewritten:
                return self
            alive()
            with _conflicts():
                Compaction.commit(own, rewritten, options)
        return VectorDataset(own, self.uri)

    @property
    def file_count(self) -> int:
        """Number of the files of this version's rows."""
        with self._errors():
            return len(self._files())

    def fragments_holding(
        self, ids: pa.Array, known: dict[str, set[str]], *, alive: Alive = lambda: None
    ) -> set[int]:
        """Ids of the fragments whose files hold rows with these item ids, deleted rows included.

        Args:
            ids: of items.
            known: the item ids that were found in files so far, by their paths; filled. Versions share files.
            alive: called after each batch.
        """
        found = set()
        for fragment in self._dataset.get_fragments():
            files = "|".join(one.path for one in fragment.data_files())
            if files not in known:
                known[files] = self._held_by(fragment, ids, alive)
            if known[files]:
                found.add(fragment.fragment_id)
        return found

    def _held_by(self, fragment: lance.LanceFragment, ids: pa.Array, alive: Alive) -> set[str]:
        found: set[str] = set()
        with self._errors():
            scanner = self._dataset.scanner(
                columns=["item_id"],
                fragments=[fragment],
                include_deleted_rows=True,
                with_row_id=True,
                batch_size=_ROWS_PER_BATCH,
            )
            for batch in scanner.to_batches():
                some = batch["item_id"]
                found.update(some.filter(pc.is_in(some, ids)).to_pylist())
                alive()
        return found

    def without(
        self, ids: pa.Array, fragments: Collection[int], properties: Mapping[str, str], *, alive: Alive
    ) -> VectorDataset:
        """Commit a version in which fragments are written anew, without the rows of these items.

        Args:
            ids: of the items.
            fragments: all that hold them, see `fragments_holding`.
            properties: see `replace`.
            alive: see `replace`.

        Raises:
            VersionConflictError: another program was faster.
            OutputUnavailableError: the dataset cannot be read or written.
        """
        every = self._dataset.get_fragments()
        rewritten = [one for one in every if one.fragment_id in fragments]

        def rows() -> Iterator[pa.RecordBatch]:
            scanner = self._dataset.scanner(
                fragments=rewritten,
                batch_size=_ROWS_PER_BATCH,
                io_buffer_size=_BYTES_AHEAD,
                scan_in_order=True,
            )
            for batch in scanner.to_batches():
                yield batch.filter(pc.invert(pc.is_in(batch["item_id"], ids)))

        with self._errors():
            return self._replace(
                [one.metadata for one in every if one.fragment_id not in fragments],
                [one.fragment_id for one in rewritten],
                rows() if rewritten else iter(()),
                properties,
                alive,
            )

    def drop_versions(self, numbers: Collection[int], *, leftovers: bool, alive: Alive = lambda: None) -> int:
        """Remove versions with all files that no other one has; return the bytes that were freed.

        Idempotent; one that was killed goes on with the next call. This version and the newest one stay.

        Args:
            numbers: of versions.
            leftovers: also remove files of no version at all, which a killed commit has left. A commit that
                another program has begun before the newest version was made loses its files, and is refused.
            alive: called every few seconds; what it raises is raised once the removal has ended.
        """
        removal = partial(
            self._dataset.cleanup_old_versions,
            versions=[*numbers] or [_NO_VERSION],
            delete_unverified=leftovers,
            error_if_tagged_old_versions=False,
        )
        with self._errors():
            return int(_alive_during(removal, alive).bytes_removed)

    @property
    def index_names(self) -> list[str]:
        """Names of the indexes of this version."""
        with self._errors():
            return sorted({str(one.name) for one in self._dataset.describe_indices()})

    def without_indexes(self) -> VectorDataset:
        """Commit versions without the indexes that there are."""
        own = self.open(self.uri, self.version)._dataset  # each commit moves it
        with self._errors(), _conflicts():
            for name in self.index_names:
                own.drop_index(name)
        return VectorDataset(own, self.uri)

    def has_files_of_no_version(self, since: datetime, *, alive: Alive = lambda: None) -> bool:
        """Whether another program may be writing rows: files from then on belong to no version.

        Args:
            since: UTC.
            alive: called while the files are listed, and after each version that is read.
        """
        with self._errors():
            files: set[str] = set()
            for batch in self._dataset.all_files():
                young = (one["path"] for one in batch.to_pylist() if one["last_modified"] >= since)
                files.update(path for path in young if path.startswith(_DATA))
                alive()
            for number, at in self.times().items():
                if files and at >= since:
                    files -= self.open(self.uri, number)._files()
                    alive()
        return bool(files)

    def has_leftovers(self, until: datetime, *, alive: Alive = lambda: None) -> bool:
        """Whether files that were written before a time belong to no version: a killed commit has left them.

        Lists of deleted rows, which are small, do not count: they go with the versions that they were made
        from.

        Args:
            until: UTC.
            alive: see `has_files_of_no_version`.
        """
        with self._errors():
            files: set[str] = set()
            for batch in self._dataset.all_files():
                old = (one["path"] for one in batch.to_pylist() if one["last_modified"] < until)
                files.update(path for path in old if path.startswith((_DATA, _INDICES)))
                alive()
            for number in sorted(self.times(), reverse=True):
                if files:
                    files = self.open(self.uri, number)._not_its_own(files)
                    alive()
        return bool(files)

    def _not_its_own(self, files: set[str]) -> set[str]:
        """Those of some files that do not belong to this version."""
        segments = [one.uuid for index in self._dataset.describe_indices() for one in index.segments]
        folders = tuple(f"{_INDICES}{one}/" for one in segments)
        return {one for one in files - self._files() if not one.startswith(folders)}

    def _files(self) -> set[str]:
        return {
            f"{_DATA}{one.path}"
            for fragment in self._dataset.get_fragments()
            for one in fragment.data_files()
        }


def remove_dataset(uri: str) -> None:
    """Remove a whole dataset, all versions of it. Idempotent.

    Raises:
        OutputUnavailableError: it cannot be removed.
    """
    import lance

    with lance_errors(uri):
        if uri.startswith(SCHEME):
            lance.LanceDataset.drop(uri, storage_options=storage_options(uri))
        elif Path(uri).exists():
            shutil.rmtree(uri)


def rows_where(rows: pa.RecordBatch, where: str) -> pa.Array:
    """The positions of the rows that a condition holds for, in order: as `VectorDataset.batches` has it.

    Args:
        rows: without vectors: all of it is copied.
        where: a condition on columns, in SQL.

    Raises:
        UsageError: the condition is invalid.
    """
    import lance

    # Each one is a place of its own, and is gone with the dataset.
    held = VectorDataset(lance.write_dataset(pa.Table.from_batches([rows]), "memory://"), "the rows")
    found = [batch["_rowaddr"] for batch in held.batches([], where=where, with_address=True)]
    return pa.chunked_array(found, pa.uint64()).combine_chunks()


def _identity(fragment: lance.LanceFragment) -> str:
    """Equal for fragments with the same rows."""
    return json.dumps(fragment.metadata.to_json(), sort_keys=True)


@contextmanager
def _conflicts() -> Iterator[None]:
    """Report that another program has committed meanwhile."""
    from lance.commit import CommitConflictError

    try:
        yield
    except CommitConflictError as error:
        raise VersionConflictError(str(error)) from error
    except (OSError, ValueError) as error:
        if "conflict" in str(error).lower():
            raise VersionConflictError(str(error)) from error
        raise


def _alive_during(work: Callable[[], Any], alive: Alive) -> Any:
    """The result of work that takes long, with a sign of life every few seconds meanwhile."""
    with ThreadPoolExecutor(1, "store") as pool:
        result = pool.submit(work)
        while not wait([result], _SIGN_OF_LIFE_SECONDS).done:
            alive()
        return result.result()


def _numbered(fragments: Sequence[Any]) -> list[Any]:
    """New fragments with ids of their own: a merge gives them none."""
    for number, one in enumerate(fragments):
        one.id = number
    return [*fragments]


def _by_query(rows: pa.Table, queries: int) -> list[pa.Table]:
    """The answer of a search for so many vectors, one by one, with similarities in place of distances."""
    import numpy as np

    similarity = pc.cast(pc.subtract(1.0, pc.cast(rows[_DISTANCE], pa.float64())), pa.float32())
    similarity = pc.min_element_wise(similarity, pa.scalar(1, pa.float32()))  # above it by rounding
    found = rows.drop_columns([_DISTANCE]).append_column(SIMILARITY, similarity)
    if queries == 1:
        return [found]
    numbers = rows[_QUERY].to_numpy()
    found = found.drop_columns([_QUERY])
    bounds = np.searchsorted(numbers, np.arange(queries + 1))
    return [found.slice(first, last - first) for first, last in itertools.pairwise(bounds.tolist())]


class _Watched:
    """Batches on their way through Lance, which turns what they raise into an error of its own."""

    def __init__(self, batches: Iterable[pa.RecordBatch], alive: Alive) -> None:
        self._batches = batches
        self._alive = alive
        self._raised: BaseException | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                yield batch
                self._alive()
        except BaseException as error:
            self._raised = error
            raise

    @contextmanager
    def raising_its_own(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if self._raised is not None:
                raise self._raised from None
            raise


def _as_utc(time: datetime) -> datetime:
    return (time if time.tzinfo else time.astimezone()).astimezone(UTC)
