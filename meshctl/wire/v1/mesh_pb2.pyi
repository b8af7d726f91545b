from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    ORIGIN_CONFIGURED: _ClassVar[Origin]
    ORIGIN_LOCAL: _ClassVar[Origin]
    ORIGIN_COORDINATOR: _ClassVar[Origin]
    ORIGIN_PEER: _ClassVar[Origin]
ORIGIN_UNSPECIFIED: Origin
ORIGIN_CONFIGURED: Origin
ORIGIN_LOCAL: Origin
ORIGIN_COORDINATOR: Origin
ORIGIN_PEER: Origin

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "release")
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    release: str
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., release: _Optional[str] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("protocol", "nonce", "now", "mesh_id", "seen_address")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    MESH_ID_FIELD_NUMBER: _ClassVar[int]
    SEEN_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    nonce: bytes
    now: float
    mesh_id: str
    seen_address: str
    def __init__(self, protocol: _Optional[int] = ..., nonce: _Optional[bytes] = ..., now: _Optional[float] = ..., mesh_id: _Optional[str] = ..., seen_address: _Optional[str] = ...) -> None: ...

class Signed(_message.Message):
    __slots__ = ("body", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("nonce", "token_id", "token_secret", "name", "tags", "statement", "candidates", "release")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    token_id: str
    token_secret: bytes
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    statement: bytes
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    release: str
    def __init__(self, nonce: _Optional[bytes] = ..., token_id: _Optional[str] = ..., token_secret: _Optional[bytes] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., statement: _Optional[bytes] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., release: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("nonce", "statement", "certificate")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    statement: bytes
    certificate: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., statement: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("certificate", "mesh", "self", "resumed")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    SELF_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    mesh: MeshInfo
    self: Node
    resumed: bool
    def __init__(self_, certificate: _Optional[bytes] = ..., mesh: _Optional[_Union[MeshInfo, _Mapping]] = ..., self: _Optional[_Union[Node, _Mapping]] = ..., resumed: _Optional[bool] = ...) -> None: ...

class Renewed(_message.Message):
    __slots__ = ("certificate", "mesh")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    mesh: MeshInfo
    def __init__(self, certificate: _Optional[bytes] = ..., mesh: _Optional[_Union[MeshInfo, _Mapping]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("address", "port", "origin")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    port: int
    origin: Origin
    def __init__(self, address: _Optional[bytes] = ..., port: _Optional[int] = ..., origin: _Optional[_Union[Origin, str]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "name", "tags", "address4", "address6", "statement", "candidates", "joined", "membership", "next_statement")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS4_FIELD_NUMBER: _ClassVar[int]
    ADDRESS6_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    NEXT_STATEMENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    address4: bytes
    address6: bytes
    statement: bytes
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    joined: int
    membership: bytes
    next_statement: bytes
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., address4: _Optional[bytes] = ..., address6: _Optional[bytes] = ..., statement: _Optional[bytes] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., joined: _Optional[int] = ..., membership: _Optional[bytes] = ..., next_statement: _Optional[bytes] = ...) -> None: ...

class MeshInfo(_message.Message):
    __slots__ = ("id", "name", "prefix4", "prefix6", "coordinators", "ca", "incarnation", "policy")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREFIX4_FIELD_NUMBER: _ClassVar[int]
    PREFIX6_FIELD_NUMBER: _ClassVar[int]
    COORDINATORS_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    prefix4: str
    prefix6: str
    coordinators: _containers.RepeatedScalarFieldContainer[str]
    ca: bytes
    incarnation: str
    policy: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., prefix4: _Optional[str] = ..., prefix6: _Optional[str] = ..., coordinators: _Optional[_Iterable[str]] = ..., ca: _Optional[bytes] = ..., incarnation: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class Up(_message.Message):
    __slots__ = ("resume", "applied", "candidates", "findings", "again", "rotation", "row", "closed", "letters")
    RESUME_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    resume: Resume
    applied: Applied
    candidates: Candidates
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    again: bool
    rotation: RotationReport
    row: MatrixRow
    closed: _containers.RepeatedCompositeFieldContainer[Finding]
    letters: _containers.RepeatedCompositeFieldContainer[Letter]
    def __init__(self, resume: _Optional[_Union[Resume, _Mapping]] = ..., applied: _Optional[_Union[Applied, _Mapping]] = ..., candidates: _Optional[_Union[Candidates, _Mapping]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., again: _Optional[bool] = ..., rotation: _Optional[_Union[RotationReport, _Mapping]] = ..., row: _Optional[_Union[MatrixRow, _Mapping]] = ..., closed: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., letters: _Optional[_Iterable[_Union[Letter, _Mapping]]] = ...) -> None: ...

class Letter(_message.Message):
    __slots__ = ("peer", "sealed")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    peer: str
    sealed: bytes
    def __init__(self, peer: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class MatrixRow(_message.Message):
    __slots__ = ("roster", "cells")
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    roster: bytes
    cells: bytes
    def __init__(self, roster: _Optional[bytes] = ..., cells: _Optional[bytes] = ...) -> None: ...

class RotationReport(_message.Message):
    __slots__ = ("rotation", "stage", "statement", "question", "pairs", "proven", "waiting", "out", "into")
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    OUT_FIELD_NUMBER: _ClassVar[int]
    INTO_FIELD_NUMBER: _ClassVar[int]
    rotation: str
    stage: str
    statement: bytes
    question: int
    pairs: int
    proven: int
    waiting: _containers.RepeatedScalarFieldContainer[str]
    out: Gaps
    into: Gaps
    def __init__(self, rotation: _Optional[str] = ..., stage: _Optional[str] = ..., statement: _Optional[bytes] = ..., question: _Optional[int] = ..., pairs: _Optional[int] = ..., proven: _Optional[int] = ..., waiting: _Optional[_Iterable[str]] = ..., out: _Optional[_Union[Gaps, _Mapping]] = ..., into: _Optional[_Union[Gaps, _Mapping]] = ...) -> None: ...

class Gaps(_message.Message):
    __slots__ = ("p50", "worst")
    P50_FIELD_NUMBER: _ClassVar[int]
    WORST_FIELD_NUMBER: _ClassVar[int]
    p50: float
    worst: float
    def __init__(self, p50: _Optional[float] = ..., worst: _Optional[float] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("hello", "incarnation", "revision", "map_hash")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MAP_HASH_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    incarnation: str
    revision: int
    map_hash: bytes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., incarnation: _Optional[str] = ..., revision: _Optional[int] = ..., map_hash: _Optional[bytes] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("revision", "digest", "verdict")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    revision: int
    digest: bytes
    verdict: str
    def __init__(self, revision: _Optional[int] = ..., digest: _Optional[bytes] = ..., verdict: _Optional[str] = ...) -> None: ...

class Candidates(_message.Message):
    __slots__ = ("candidates",)
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("code", "subject", "verdict", "since", "at", "evidence", "number", "signature")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    code: str
    subject: str
    verdict: str
    since: float
    at: float
    evidence: str
    number: int
    signature: bytes
    def __init__(self, code: _Optional[str] = ..., subject: _Optional[str] = ..., verdict: _Optional[str] = ..., since: _Optional[float] = ..., at: _Optional[float] = ..., evidence: _Optional[str] = ..., number: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Down(_message.Message):
    __slots__ = ("put", "gone", "from_revision", "to_revision", "map_hash", "snapshot", "more", "heartbeat", "mesh", "protocol", "order", "letters")
    PUT_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    FROM_REVISION_FIELD_NUMBER: _ClassVar[int]
    TO_REVISION_FIELD_NUMBER: _ClassVar[int]
    MAP_HASH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    put: _containers.RepeatedScalarFieldContainer[bytes]
    gone: _containers.RepeatedScalarFieldContainer[str]
    from_revision: int
    to_revision: int
    map_hash: bytes
    snapshot: bool
    more: bool
    heartbeat: Heartbeat
    mesh: MeshInfo
    protocol: int
    order: RotationOrder
    letters: _containers.RepeatedCompositeFieldContainer[Letter]
    def __init__(self, put: _Optional[_Iterable[bytes]] = ..., gone: _Optional[_Iterable[str]] = ..., from_revision: _Optional[int] = ..., to_revision: _Optional[int] = ..., map_hash: _Optional[bytes] = ..., snapshot: _Optional[bool] = ..., more: _Optional[bool] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., mesh: _Optional[_Union[MeshInfo, _Mapping]] = ..., protocol: _Optional[int] = ..., order: _Optional[_Union[RotationOrder, _Mapping]] = ..., letters: _Optional[_Iterable[_Union[Letter, _Mapping]]] = ...) -> None: ...

class RotationOrder(_message.Message):
    __slots__ = ("rotation", "phase", "grant", "force")
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    rotation: str
    phase: str
    grant: int
    force: bool
    def __init__(self, rotation: _Optional[str] = ..., phase: _Optional[str] = ..., grant: _Optional[int] = ..., force: _Optional[bool] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("now", "revision", "findings", "seen_address", "registry_age", "heard")
    NOW_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    SEEN_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_AGE_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    now: float
    revision: int
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    seen_address: str
    registry_age: float
    heard: int
    def __init__(self, now: _Optional[float] = ..., revision: _Optional[int] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., seen_address: _Optional[str] = ..., registry_age: _Optional[float] = ..., heard: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Done(_message.Message):
    __slots__ = ("revision", "what")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    revision: int
    what: str
    def __init__(self, revision: _Optional[int] = ..., what: _Optional[str] = ...) -> None: ...

class Named(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class TokenRequest(_message.Message):
    __slots__ = ("life_s", "uses", "tags", "ephemeral", "note")
    LIFE_S_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    life_s: float
    uses: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    ephemeral: bool
    note: str
    def __init__(self, life_s: _Optional[float] = ..., uses: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ..., ephemeral: _Optional[bool] = ..., note: _Optional[str] = ...) -> None: ...

class TokenCreated(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "created", "expires", "uses", "tags", "ephemeral", "revoked", "used_by", "note")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    USED_BY_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    id: str
    created: float
    expires: float
    uses: int
    tags: _containers.RepeatedScalarFieldContainer[str]
    ephemeral: bool
    revoked: bool
    used_by: _containers.RepeatedScalarFieldContainer[str]
    note: str
    def __init__(self, id: _Optional[str] = ..., created: _Optional[float] = ..., expires: _Optional[float] = ..., uses: _Optional[int] = ..., tags: _Optional[_Iterable[str]] = ..., ephemeral: _Optional[bool] = ..., revoked: _Optional[bool] = ..., used_by: _Optional[_Iterable[str]] = ..., note: _Optional[str] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class NodeState(_message.Message):
    __slots__ = ("node", "connected", "since", "applied", "digest_ok", "verdict", "state", "ephemeral", "findings", "seen_address", "key_made_at", "via", "release")
    NODE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DIGEST_OK_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    SEEN_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KEY_MADE_AT_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    connected: bool
    since: float
    applied: int
    digest_ok: bool
    verdict: str
    state: str
    ephemeral: bool
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    seen_address: str
    key_made_at: float
    via: str
    release: str
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., connected: _Optional[bool] = ..., since: _Optional[float] = ..., applied: _Optional[int] = ..., digest_ok: _Optional[bool] = ..., verdict: _Optional[str] = ..., state: _Optional[str] = ..., ephemeral: _Optional[bool] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., seen_address: _Optional[str] = ..., key_made_at: _Optional[float] = ..., via: _Optional[str] = ..., release: _Optional[str] = ...) -> None: ...

class NodeStates(_message.Message):
    __slots__ = ("nodes", "revision")
    NODES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeState]
    revision: int
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeState, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class AppliedRequest(_message.Message):
    __slots__ = ("revision", "timeout_s")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    revision: int
    timeout_s: float
    def __init__(self, revision: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class AppliedReply(_message.Message):
    __slots__ = ("applied", "stragglers", "seconds", "waiting")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    STRAGGLERS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    applied: int
    stragglers: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    waiting: int
    def __init__(self, applied: _Optional[int] = ..., stragglers: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ..., waiting: _Optional[int] = ...) -> None: ...

class CoordinatorStatus(_message.Message):
    __slots__ = ("mesh", "revision", "nodes", "connected", "converged", "started", "release", "etcd", "coordinators", "endpoints", "oldest", "newest", "releases", "rotation", "registry_age")
    MESH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    CONVERGED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ETCD_FIELD_NUMBER: _ClassVar[int]
    COORDINATORS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_AGE_FIELD_NUMBER: _ClassVar[int]
    mesh: MeshInfo
    revision: int
    nodes: int
    connected: int
    converged: int
    started: float
    release: str
    etcd: str
    coordinators: _containers.RepeatedCompositeFieldContainer[CoordinatorState]
    endpoints: _containers.RepeatedCompositeFieldContainer[EtcdEndpoint]
    oldest: int
    newest: int
    releases: _containers.RepeatedCompositeFieldContainer[ReleaseCount]
    rotation: RotationState
    registry_age: float
    def __init__(self, mesh: _Optional[_Union[MeshInfo, _Mapping]] = ..., revision: _Optional[int] = ..., nodes: _Optional[int] = ..., connected: _Optional[int] = ..., converged: _Optional[int] = ..., started: _Optional[float] = ..., release: _Optional[str] = ..., etcd: _Optional[str] = ..., coordinators: _Optional[_Iterable[_Union[CoordinatorState, _Mapping]]] = ..., endpoints: _Optional[_Iterable[_Union[EtcdEndpoint, _Mapping]]] = ..., oldest: _Optional[int] = ..., newest: _Optional[int] = ..., releases: _Optional[_Iterable[_Union[ReleaseCount, _Mapping]]] = ..., rotation: _Optional[_Union[RotationState, _Mapping]] = ..., registry_age: _Optional[float] = ...) -> None: ...

class CoordinatorState(_message.Message):
    __slots__ = ("id", "name", "addresses", "release", "started", "age", "silent", "here", "revision", "connected", "behind", "p50", "p99", "samples")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    P50_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    release: str
    started: float
    age: float
    silent: bool
    here: bool
    revision: int
    connected: int
    behind: int
    p50: float
    p99: float
    samples: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., release: _Optional[str] = ..., started: _Optional[float] = ..., age: _Optional[float] = ..., silent: _Optional[bool] = ..., here: _Optional[bool] = ..., revision: _Optional[int] = ..., connected: _Optional[int] = ..., behind: _Optional[int] = ..., p50: _Optional[float] = ..., p99: _Optional[float] = ..., samples: _Optional[int] = ...) -> None: ...

class EtcdEndpoint(_message.Message):
    __slots__ = ("address", "ok", "leader", "version", "size", "words")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    address: str
    ok: bool
    leader: bool
    version: str
    size: int
    words: str
    def __init__(self, address: _Optional[str] = ..., ok: _Optional[bool] = ..., leader: _Optional[bool] = ..., version: _Optional[str] = ..., size: _Optional[int] = ..., words: _Optional[str] = ...) -> None: ...

class ReleaseCount(_message.Message):
    __slots__ = ("release", "nodes")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    release: str
    nodes: int
    def __init__(self, release: _Optional[str] = ..., nodes: _Optional[int] = ...) -> None: ...

class RotateRequest(_message.Message):
    __slots__ = ("nodes", "tags", "all", "force", "reason")
    NODES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    force: bool
    reason: str
    def __init__(self, nodes: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., all: _Optional[bool] = ..., force: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class RotationState(_message.Message):
    __slots__ = ("id", "actor", "opened_at", "targets", "force", "node", "phase", "waiting", "pairs", "proven", "done", "left", "failed", "ended", "gap", "cancelled", "closed_at", "turns_ended", "all_pairs", "all_proven")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    TURNS_ENDED_FIELD_NUMBER: _ClassVar[int]
    ALL_PAIRS_FIELD_NUMBER: _ClassVar[int]
    ALL_PROVEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    actor: str
    opened_at: float
    targets: int
    force: bool
    node: str
    phase: str
    waiting: _containers.RepeatedScalarFieldContainer[str]
    pairs: int
    proven: int
    done: int
    left: int
    failed: _containers.RepeatedCompositeFieldContainer[RotationEnded]
    ended: _containers.RepeatedCompositeFieldContainer[RotationEnded]
    gap: Gaps
    cancelled: bool
    closed_at: float
    turns_ended: int
    all_pairs: int
    all_proven: int
    def __init__(self, id: _Optional[str] = ..., actor: _Optional[str] = ..., opened_at: _Optional[float] = ..., targets: _Optional[int] = ..., force: _Optional[bool] = ..., node: _Optional[str] = ..., phase: _Optional[str] = ..., waiting: _Optional[_Iterable[str]] = ..., pairs: _Optional[int] = ..., proven: _Optional[int] = ..., done: _Optional[int] = ..., left: _Optional[int] = ..., failed: _Optional[_Iterable[_Union[RotationEnded, _Mapping]]] = ..., ended: _Optional[_Iterable[_Union[RotationEnded, _Mapping]]] = ..., gap: _Optional[_Union[Gaps, _Mapping]] = ..., cancelled: _Optional[bool] = ..., closed_at: _Optional[float] = ..., turns_ended: _Optional[int] = ..., all_pairs: _Optional[int] = ..., all_proven: _Optional[int] = ...) -> None: ...

class RotationEnded(_message.Message):
    __slots__ = ("node", "why", "pairs", "proven", "waiting", "out", "into")
    NODE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    OUT_FIELD_NUMBER: _ClassVar[int]
    INTO_FIELD_NUMBER: _ClassVar[int]
    node: str
    why: str
    pairs: int
    proven: int
    waiting: _containers.RepeatedScalarFieldContainer[str]
    out: Gaps
    into: Gaps
    def __init__(self, node: _Optional[str] = ..., why: _Optional[str] = ..., pairs: _Optional[int] = ..., proven: _Optional[int] = ..., waiting: _Optional[_Iterable[str]] = ..., out: _Optional[_Union[Gaps, _Mapping]] = ..., into: _Optional[_Union[Gaps, _Mapping]] = ...) -> None: ...

class Grid(_message.Message):
    __slots__ = ("mesh", "revision", "lines", "cells")
    MESH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    mesh: str
    revision: int
    lines: _containers.RepeatedCompositeFieldContainer[GridLine]
    cells: bytes
    def __init__(self, mesh: _Optional[str] = ..., revision: _Optional[int] = ..., lines: _Optional[_Iterable[_Union[GridLine, _Mapping]]] = ..., cells: _Optional[bytes] = ...) -> None: ...

class GridLine(_message.Message):
    __slots__ = ("id", "name", "known", "heard", "connected", "via", "why")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    known: bool
    heard: float
    connected: bool
    via: str
    why: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., known: _Optional[bool] = ..., heard: _Optional[float] = ..., connected: _Optional[bool] = ..., via: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...
