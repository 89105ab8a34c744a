"""What is read from a listing of machine code."""

from __future__ import annotations

from fisopt.codegen.sass import async_copies, instructions, main_loop, tensor_core

PROGRAM = [
    "MOV R1, c[0x0][0x28]",
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2",  # 0010, the loop that masks nothing
    "@!P0 BRA 0x00c0",
    "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8]",
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "UTMALDG.4D [UR8], [UR4], desc[UR6]",
    "@P1 BRA 0x0010",
    "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8]",  # 0070, the loop that masks
    "LDGDEPBAR",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "@P2 BRA `(.L_x_1)` 0x0070",
    "EXIT",
    "@!P0 BRA 0x0020",  # 00c0, a retry
]
LISTING = "\n".join(
    f"        /*{16 * i:04x}*/                   {text} ;      /* 0x000000000000794d */\n"
    f"                                                       /* 0x000fea0003800000 */"
    for i, text in enumerate(PROGRAM)
)


def test_counts_of_a_program() -> None:
    code = instructions(LISTING)
    assert [text for _, text in code] == PROGRAM
    assert tensor_core(code) == {"HGMMA": 2}
    assert async_copies(code) == {"UTMALDG": 1}


def test_the_main_loop_is_that_without_barriers() -> None:
    code = instructions(LISTING)
    assert main_loop(code) == {"instructions": 6, "waits": 2, "barriers": 0}
    assert main_loop(code[6:]) == {"instructions": 4, "waits": 0, "barriers": 1}
    assert main_loop(code[:6]) == {}
