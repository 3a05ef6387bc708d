"""EFI_GUID: mixed-endian on the wire (UEFI 2.10, appendix A), which is `uuid.UUID`'s `bytes_le`."""

from uuid import UUID

EFI_GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
EFI_IMAGE_SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")

EFI_CERT_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
EFI_CERT_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
EFI_CERT_X509_SHA256 = UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed")
EFI_CERT_TYPE_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")

SIGNATURE_DATA_SIZES: dict[UUID, int | None] = {
    EFI_CERT_X509: None,
    EFI_CERT_SHA256: 32,
    EFI_CERT_X509_SHA256: 48,
    UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6"): 256,  # EFI_CERT_RSA2048
    UUID("e2b36190-879b-4a3d-ad8d-f2e7bba32784"): 256,  # EFI_CERT_RSA2048_SHA256
    UUID("826ca512-cf10-4ac9-b187-be01496631bd"): 20,  # EFI_CERT_SHA1
    UUID("67f8444f-8743-48f1-a328-1eaab8736080"): 256,  # EFI_CERT_RSA2048_SHA1
    UUID("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd"): 28,  # EFI_CERT_SHA224
    UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): 48,  # EFI_CERT_SHA384
    UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): 64,  # EFI_CERT_SHA512
    UUID("7076876e-80c2-4ee6-aad2-28b349a6865b"): 64,  # EFI_CERT_X509_SHA384
    UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): 80,  # EFI_CERT_X509_SHA512
}
"""The signature types that varstored's SetVariable accepts, with the bytes of one signature without its owner; None: any.

UEFI 2.10, section 32.4.1; varstored, handler.c. The header size of every one of them is 0.
"""
