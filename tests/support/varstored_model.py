"""A model of varstored: loads stores, serves SetVariable with real signatures, saves stores.

The judge of what the product makes. It follows varstored's `xapidb-lib.c` and `handler.c` and shares no code with the
product, so that an error there cannot hide here.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from support import storebytes as sb
from support.pkcs7 import SignatureRefused, SignedData, read_certificate, sign_detached, verify_signed_data
from support.siglist_rules import ListRefused, certificates_in, signature_list_violations, without_known
from support.storebytes import Variable

__all__ = [
    "LoadRefused",
    "SetRefused",
    "Status",
    "VarstoredModel",
    "sign_update",
    "signature_list_violations",
]

NEWEST_VERSION = 2
AUTHENTICATION_HEADER_SIZE = 40
"""EFI_VARIABLE_AUTHENTICATION_2 up to CertData: EFI_TIME 16, WIN_CERTIFICATE 8, CertType 16."""
CERTIFICATE_REVISION = 0x0200
CERTIFICATE_TYPE_GUID = 0x0EF1
ACCESS = sb.BOOTSERVICE_ACCESS | sb.RUNTIME_ACCESS

READ_ONLY = {"SetupMode": 1, "SecureBoot": 1, "AuditMode": 1, "DeployedMode": 1, "SignatureSupport": 64}
"""The volatile variables that varstored itself makes at start, and the bytes of their data."""
VOLATILE_BYTES = sum(2 * len(name) + size + sb.OVERHEAD_COUNTED for name, size in READ_ONLY.items())
"""What those take of TOTAL_LIMIT while a VM runs; they are not in the store."""


class LoadRefused(Exception):  # noqa: N818 - named after what happened, as the tests that expect it read
    """A store that varstored refuses: the VM does not start. The text says why."""


class Status(Enum):
    """The EFI_STATUS values with which SetVariable refuses."""

    INVALID_PARAMETER = auto()
    UNSUPPORTED = auto()
    OUT_OF_RESOURCES = auto()
    NOT_FOUND = auto()
    WRITE_PROTECTED = auto()
    SECURITY_VIOLATION = auto()


class SetRefused(Exception):  # noqa: N818 - named after what happened, as the tests that expect it read
    """A SetVariable that varstored refuses; nothing was changed."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(f"{status.name}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Update:
    """An EFI_VARIABLE_AUTHENTICATION_2 taken apart (UEFI 2.10, 8.2.2)."""

    time: bytes
    signature: bytes
    payload: bytes

    @classmethod
    def read(cls, data: bytes) -> "Update":
        if len(data) < AUTHENTICATION_HEADER_SIZE:
            raise SetRefused(Status.SECURITY_VIOLATION, f"{len(data)} bytes are no authentication header")
        time = data[:16]
        length, _, certificate_type = struct.unpack_from("<IHH", data, 16)
        if time[7] or any(time[8:]):
            raise SetRefused(Status.SECURITY_VIOLATION, "an EFI_TIME with more than date and time of day")
        if certificate_type != CERTIFICATE_TYPE_GUID or data[24:40] != sb.CERT_PKCS7.bytes_le:
            raise SetRefused(Status.SECURITY_VIOLATION, "a certificate type that is not PKCS#7")
        end = 16 + length
        if not AUTHENTICATION_HEADER_SIZE <= end <= len(data):
            raise SetRefused(Status.SECURITY_VIOLATION, f"dwLength {length} in {len(data)} bytes")
        return cls(time, data[AUTHENTICATION_HEADER_SIZE:end], data[end:])


class VarstoredModel:
    """One varstored with its list of variables, newest first.

    `checks_append`: whether an append that makes a variable longer than DATA_LIMIT is refused. Off, as in the varstored
    whose dbx outgrew the limit: the next load refuses the store.
    """

    def __init__(self, *, version: int = NEWEST_VERSION, ancillary: bytes = b"", checks_append: bool = False) -> None:
        self.version = version
        self.ancillary = ancillary if version == 2 else b""
        self.checks_append = checks_append
        self._variables: list[Variable] = []
        if version == 2 and not ancillary:
            self.ancillary = bytes(sb.ANCILLARY_SIZE)

    @classmethod
    def load(cls, blob: bytes, *, newest_version: int = NEWEST_VERSION, checks_append: bool = False) -> "VarstoredModel":
        """Load a store as at the start of a VM; raises LoadRefused with the reason.

        `newest_version`: 1 for an old host. As in varstored the recorded data length and what is inside a variable
        are not looked at.
        """
        if len(blob) > sb.FILE_LIMIT:
            raise LoadRefused(f"a file of {len(blob)} bytes, at most {sb.FILE_LIMIT}")
        if len(blob) < sb.HEADER_SIZE:
            raise LoadRefused(f"{len(blob)} bytes where the header needs {sb.HEADER_SIZE}")
        magic, version, count, _ = struct.unpack_from("<4sIQQ", blob)
        if magic != b"VARS":
            raise LoadRefused(f"magic {magic!r}")
        if version > newest_version:
            raise LoadRefused(f"version {version}, at most {newest_version}")
        if count > sb.COUNT_LIMIT:
            raise LoadRefused(f"variable count {count}, at most {sb.COUNT_LIMIT}")
        offset = sb.HEADER_SIZE + (sb.ANCILLARY_SIZE if version == 2 else 0)
        if len(blob) < offset:
            raise LoadRefused(f"{len(blob)} bytes end inside the ancillary block")
        model = cls(version=version, ancillary=blob[sb.HEADER_SIZE : offset], checks_append=checks_append)
        for number in range(count):
            variable, offset = _read_variable(blob, offset, number)
            model._variables.insert(0, variable)
        if offset != len(blob):
            raise LoadRefused(f"{len(blob) - offset} bytes after the last variable")
        if model.stored_bytes > sb.TOTAL_LIMIT:
            raise LoadRefused(f"{model.stored_bytes} bytes of variables, at most {sb.TOTAL_LIMIT}")
        return model

    def save(self, *, volatile_too: bool = False) -> bytes:
        """Serialise the list in its order, so in the reverse of the order loaded; the version stays.

        `volatile_too`: as for a migration, else non-volatile variables alone.
        """
        return sb.make_store(
            [each for each in self._variables if volatile_too or each.attributes & sb.NON_VOLATILE],
            self.version,
            self.ancillary,
        )

    def list(self) -> tuple[Variable, ...]:
        """The variables, in the order of the list. Names are text where they are UTF-16LE."""
        return tuple(self._variables)

    @property
    def names(self) -> tuple[str | bytes, ...]:
        return tuple(each.name for each in self._variables)

    def get(self, name: str, guid: UUID) -> Variable:
        """The first variable of that name in the list; raises KeyError where there is none."""
        return self._variables[self._index(name, guid)]

    def __contains__(self, key: tuple[str, UUID]) -> bool:
        return any(each.name == key[0] and each.guid == key[1] for each in self._variables)

    def in_setup_mode(self) -> bool:
        return ("PK", sb.GLOBAL) not in self

    @property
    def stored_bytes(self) -> int:
        """What the variables of the store count towards TOTAL_LIMIT."""
        return sum(each.counted for each in self._variables)

    @property
    def used_bytes(self) -> int:
        """What varstored counts towards TOTAL_LIMIT while the VM runs: with its own volatile variables."""
        return self.stored_bytes + VOLATILE_BYTES

    def set_variable(self, name: str, guid: UUID, attributes: int, data: bytes) -> bool:
        """SetVariable by the guest before it leaves boot services; raises SetRefused.

        Returns whether the store changed, so whether varstored writes it upstream. Private authenticated variables
        (those with TIME_BASED_AUTHENTICATED_WRITE_ACCESS besides PK, KEK, db, dbx and dbt) are not modelled.
        """
        raw_name = name.encode("utf-16-le")
        if not 1 <= len(raw_name) <= sb.NAME_LIMIT:
            raise SetRefused(Status.INVALID_PARAMETER, f"a name of {len(raw_name)} bytes")
        if len(data) > sb.DATA_LIMIT:
            raise SetRefused(Status.OUT_OF_RESOURCES, f"{len(data)} bytes of data, at most {sb.DATA_LIMIT}")
        append = bool(attributes & sb.APPEND_WRITE)
        attributes &= ~sb.APPEND_WRITE
        _check_attributes(attributes)
        if guid == sb.GLOBAL and name in READ_ONLY:
            raise SetRefused(Status.WRITE_PROTECTED, f"{name} is varstored's own")
        if (name, guid) in self:
            return self._change(self._index(name, guid), attributes, data, append=append)
        return self._create(Variable(name, guid, data, attributes), append=append)

    def _index(self, name: str, guid: UUID) -> int:
        for index, each in enumerate(self._variables):
            if each.name == name and each.guid == guid:
                return index
        raise KeyError(name)

    def _create(self, wanted: Variable, *, append: bool) -> bool:
        if not wanted.data or not wanted.attributes & ACCESS:
            raise SetRefused(Status.NOT_FOUND, f"nothing to delete: {wanted.name!r}")
        if _is_key_variable(wanted) and wanted.attributes != sb.ATTRIBUTES_KEYS:
            raise SetRefused(Status.INVALID_PARAMETER, f"attributes {wanted.attributes:#x}")
        if wanted.attributes & sb.TIME_BASED_AUTHENTICATED_WRITE_ACCESS:
            update = self._authenticate(wanted, wanted.data, append=append)
            wanted = replace(wanted, data=update.payload, time=update.time)
            if not wanted.data:
                raise SetRefused(Status.NOT_FOUND, f"nothing to delete: {wanted.name!r}")
        self._check_room(wanted.counted)
        self._variables.insert(0, wanted)
        return bool(wanted.attributes & sb.NON_VOLATILE)

    def _change(self, index: int, attributes: int, data: bytes, *, append: bool) -> bool:
        old = self._variables[index]
        time = old.time
        if attributes & sb.TIME_BASED_AUTHENTICATED_WRITE_ACCESS:
            if old.attributes != attributes:
                raise SetRefused(Status.INVALID_PARAMETER, f"attributes {attributes:#x}, were {old.attributes:#x}")
            update = self._authenticate(old, data, append=append, known=True)
            data = update.payload
            time = update.time if not append or _later(old.time, update.time) else old.time
        delete = (not data and not append) or not attributes & ACCESS
        authenticated = old.attributes & sb.TIME_BASED_AUTHENTICATED_WRITE_ACCESS
        if old.attributes != attributes and (authenticated or not delete):
            raise SetRefused(Status.INVALID_PARAMETER, f"attributes {attributes:#x}, were {old.attributes:#x}")
        if delete:
            del self._variables[index]
            return bool(old.attributes & sb.NON_VOLATILE)
        if append:
            if _is_key_variable(old) and old.guid == sb.IMAGE_SECURITY:
                data = _new_entries(old.data, data)
            data = old.data + data
            if self.checks_append and len(data) > sb.DATA_LIMIT:
                raise SetRefused(Status.OUT_OF_RESOURCES, f"{len(data)} bytes after the append")
        self._check_room(len(data) - len(old.data))
        new = replace(old, data=data, time=time)
        self._variables[index] = new
        return new != old and bool(old.attributes & sb.NON_VOLATILE)

    def _check_room(self, more: int) -> None:
        if self.used_bytes + more > sb.TOTAL_LIMIT:
            raise SetRefused(Status.OUT_OF_RESOURCES, f"{more} bytes more than {self.used_bytes}, at most {sb.TOTAL_LIMIT}")

    def _authenticate(self, target: Variable, data: bytes, *, append: bool, known: bool = False) -> Update:
        """Take the update in `data` apart and hold it to every rule for the key variable `target`."""
        if not _is_key_variable(target) or isinstance(target.name, bytes):
            raise SetRefused(Status.UNSUPPORTED, "private authenticated variables are not modelled")
        if target.name == "PK" and append and known:
            raise SetRefused(Status.INVALID_PARAMETER, "an append to PK")
        update = Update.read(data)
        if not self.in_setup_mode() or target.name == "PK":
            if known and not append and not _later(target.time, update.time):
                raise SetRefused(Status.SECURITY_VIOLATION, "an EFI_TIME that is not later than the stored one")
            self._check_signature(target, update, append=append)
        violations = signature_list_violations(update.payload, target.name)
        if violations:
            raise SetRefused(Status.INVALID_PARAMETER, violations[0])
        return update

    def _check_signature(self, target: Variable, update: Update, *, append: bool) -> None:
        attributes = target.attributes | (sb.APPEND_WRITE if append else 0)
        content = _signed_content(target.raw_name, target.guid, attributes, update.time, update.payload)
        try:
            if self.in_setup_mode():
                if update.payload:
                    verify_signed_data(update.signature, content, self._own_certificate(update.payload))
                return
            platform_key = self._certificates("PK")
            signer = SignedData.read(update.signature).signer_certificates()[-1]
            if signer in platform_key[:1]:
                verify_signed_data(update.signature, content, [signer])
            elif target.guid == sb.IMAGE_SECURITY:
                verify_signed_data(update.signature, content, self._certificates("KEK"))
            else:
                raise SignatureRefused("the signer is not the platform key")
        except SignatureRefused as error:
            raise SetRefused(Status.SECURITY_VIOLATION, str(error)) from error
        except ListRefused as error:
            raise SetRefused(Status.SECURITY_VIOLATION, f"the keys to verify with: {error}") from error

    def _certificates(self, name: str) -> Sequence[x509.Certificate]:
        """The certificates of a key variable that can be read."""
        if (name, sb.GLOBAL) not in self:
            return ()
        found = []
        for body in certificates_in(self.get(name, sb.GLOBAL).data):
            try:
                found.append(read_certificate(body))
            except SignatureRefused:
                continue
        return found

    @staticmethod
    def _own_certificate(payload: bytes) -> Sequence[x509.Certificate]:
        """The first certificate of a new platform key: in setup mode it must have signed itself in."""
        return [read_certificate(body) for body in certificates_in(payload)][:1]


def _read_variable(blob: bytes, offset: int, number: int) -> tuple[Variable, int]:
    """The variable at `offset`, and the offset after it."""
    left = len(blob) - offset - sb.VARIABLE_FIXED_SIZE
    if left < 0:
        raise LoadRefused(f"variable {number}: {left + sb.VARIABLE_FIXED_SIZE} bytes left, at least 84 needed")
    parts = []
    for what, limit in (("name", sb.NAME_LIMIT), ("data", sb.DATA_LIMIT)):
        (length,) = struct.unpack_from("<Q", blob, offset)
        if not 1 <= length <= min(left, limit):
            raise LoadRefused(f"variable {number}: a {what} of {length} bytes, 1 to {min(left, limit)} possible")
        parts.append(blob[offset + 8 : offset + 8 + length])
        offset += 8 + length
        left -= length
    raw_name, data = parts
    guid, attributes, time, digest = struct.unpack_from("<16sI16s32s", blob, offset)
    try:
        name: str | bytes = raw_name.decode("utf-16-le")
    except UnicodeDecodeError:
        name = raw_name
    return Variable(name, UUID(bytes_le=guid), data, attributes, time, digest), offset + 68


def _check_attributes(attributes: int) -> None:
    both = sb.TIME_BASED_AUTHENTICATED_WRITE_ACCESS | sb.ENHANCED_AUTHENTICATED_ACCESS
    if attributes & sb.HARDWARE_ERROR_RECORD:
        raise SetRefused(Status.INVALID_PARAMETER, "a hardware error record")
    if attributes & sb.AUTHENTICATED_WRITE_ACCESS:
        raise SetRefused(Status.UNSUPPORTED, "authentication by count")
    if attributes & both == both:
        raise SetRefused(Status.INVALID_PARAMETER, "both kinds of authentication")
    if attributes & sb.ENHANCED_AUTHENTICATED_ACCESS:
        raise SetRefused(Status.UNSUPPORTED, "enhanced authentication")
    if attributes & ACCESS == sb.RUNTIME_ACCESS:
        raise SetRefused(Status.INVALID_PARAMETER, "runtime access without boot services access")


def _is_key_variable(variable: Variable) -> bool:
    names = {sb.GLOBAL: ("PK", "KEK"), sb.IMAGE_SECURITY: ("db", "dbx", "dbt")}
    return variable.name in names.get(variable.guid, ())


def _new_entries(old: bytes, new: bytes) -> bytes:
    try:
        return without_known(old, new)
    except ListRefused as error:
        # varstored would walk the malformed list without checks; no test may build on what comes of that.
        raise AssertionError(f"an append to a variable with malformed lists: {error}") from error


def _later(before: bytes, after: bytes) -> bool:
    return struct.unpack_from("<H5B", after) > struct.unpack_from("<H5B", before)


def _signed_content(raw_name: bytes, guid: UUID, attributes: int, time: bytes, payload: bytes) -> bytes:
    """What an update's signature is over (UEFI 2.10, 8.2.2): the name without its terminator, and so on."""
    return raw_name + guid.bytes_le + struct.pack("<I", attributes) + time + payload


def sign_update(
    name: str,
    guid: UUID,
    attributes: int,
    time: bytes,
    payload: bytes,
    *,
    key: rsa.RSAPrivateKey,
    cert: x509.Certificate,
    chain: Sequence[x509.Certificate] = (),
    signed_attributes: bool = False,
    wrapped: bool = False,
) -> bytes:
    """An EFI_VARIABLE_AUTHENTICATION_2 with its payload, signed by `key`: the data of a SetVariable.

    `attributes` as given to SetVariable, with APPEND_WRITE for an append. `wrapped` puts the SignedData into a
    ContentInfo, which some tools do.
    """
    content = _signed_content(name.encode("utf-16-le"), guid, attributes, time, payload)
    signature = sign_detached(content, key, cert, chain, attributes=signed_attributes, wrapped=wrapped)
    header = struct.pack("<IHH", 24 + len(signature), CERTIFICATE_REVISION, CERTIFICATE_TYPE_GUID)
    return time + header + sb.CERT_PKCS7.bytes_le + signature + payload
