"""Numbers that judge maps and pictures.

In: maps, masks, pictures, known places. Out: IMACS, mass, entropy, agreement, errors of correspondence, PSNR, SSIM,
LPIPS, curves of faithfulness, each as a number or with its bootstrap interval; `score_trace` gives all those of one
trace.
"""
