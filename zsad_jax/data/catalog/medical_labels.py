"""Data sets without masks, medical ones and one of sewer pipes: one category each, test images only."""

from zsad_jax.data.catalog.entry import NOT_STATED, Category, Entry, converted, image_labels

_LABELS_ONLY = 'There are no masks, so only image-level metrics are defined; anomalous images have `has_mask` False.'

ENTRIES = {
    'head_ct': Entry(
        title='HeadCT',
        summary='Kitamura, 2018: 200 slices of head CT, half of them with a haemorrhage.',
        description=f"""\
PNG of 134 x 135 to 821 x 957 pixels. {_LABELS_ONLY} The defect type is `hemorrhage`, as the archive spells it. Also
read: the layouts that AnomalyCLIP's and AdaCLIP's scripts expect, brain/test/{{good,<any other>}}/ and
headct/test/{{good,defect}}/; CLIP-AD reads the archive as it is. 12 of the 200 files have an alpha channel. It is
dropped by default, as in the official code, so hidden pixels become visible; data.transparency=white shows white
there. The notes count such files.""",
        citations=('kitamura2018head',),
        homepage='https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage',
        archive='archive.zip',
        unpack='unzip archive.zip',
        tree='head_ct/labels.csv\n'
             'head_ct/head_ct/head_ct/000.png, ...',
        licence=NOT_STATED,
        layout=None,
        categories={'brain': Category('brain', 0, 100, 100)},
        domain='medical',
        masks='none',
        markers=('labels.csv', 'test'),
        tops=('brain', 'headct'),
        transparency='drop'),
    'brain_mri': Entry(
        title='BrainMRI',
        summary='Chakrabarty, 2019: 253 slices of brain MRI, 155 of them with a tumour.',
        description=f"""\
Slices collected from the web, 150 x 168 to 1,920 x 1,427 pixels. {_LABELS_ONLY} 25 of the files repeat another byte
for byte, never across the two labels; they are kept, as in published numbers, and a note counts them. Names and formats
are mixed: the content decides what a file is, not its name. Five files have an alpha channel and one a palette; alpha
is dropped by default, as in the official code, data.transparency=white shows white there. The archive holds `yes/` and
`no/` twice; they are read once. Also read: AdaCLIP's brain_mri/test/{{good,<any other>}}/.""",
        citations=('chakrabarty2019brain',),
        homepage='https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection',
        archive='archive.zip',
        unpack='unzip archive.zip',
        tree='brain_mri/brain_tumor_dataset/{yes,no}/*       (the archive holds yes/ and no/ twice)',
        licence=NOT_STATED,
        layout=(image_labels('no', 'yes', 'tumour', unused=('brain_tumor_dataset',)),
                converted('tumour', masks=False)),
        categories={'brain': Category('brain', 0, 98, 155)},
        domain='medical',
        masks='none',
        markers=('yes', 'no', 'test'),
        tops=('brain_tumor_dataset', 'brain_mri'),
        transparency='drop',
        has_copies=True),
    'br35h': Entry(
        title='Br35H',
        summary='Hamada, 2020: 3,000 slices of brain MRI, half of them with a tumour.',
        description=f"""\
JPEG of mixed sizes. {_LABELS_ONLY} It may share images with BrainMRI, since both were collected from the web. Only
`yes/` and `no/` are read; the archive's `pred/` (unlabelled) and `Br35H-Mask-RCNN/` (for detection) are not used, and
scripts that take every folder except `no` for tumours count them. Also read: AdaCLIP's
br35h/test/{{good,<any other>}}/.""",
        citations=('hamada2020br35h',),
        homepage='https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection',
        archive='archive.zip',
        unpack='unzip archive.zip',
        tree='br35h/{yes,no}/*.jpg       (pred/ and Br35H-Mask-RCNN/ are not used)',
        licence=NOT_STATED,
        layout=(image_labels('no', 'yes', 'tumour', unused=('pred', 'Br35H-Mask-RCNN')),
                converted('tumour', masks=False)),
        categories={'brain': Category('brain', 0, 1500, 1500)},
        domain='medical',
        masks='none',
        markers=('yes', 'no', 'test'),
        tops=('br35h',)),
    'covid19_radiography': Entry(
        title='COVID-19 radiography',
        summary='Chowdhury et al., 2020; Rahman et al., 2021: chest X-rays, normal ones and of COVID-19.',
        description=f"""\
Two releases, which are two configurations; name the configuration next to every result:

| configuration | name for `load` | normal | COVID-19 | pixels |
| --- | --- | --- | --- | --- |
| `v2020` (default) | `covid19_radiography` | 1,341 | 219 | 1,024 x 1,024 |
| `current` | `covid19_radiography/current` | 10,192 | 3,616 | 299 x 299 |

Papers on zero-shot detection state the counts of the first release. {_LABELS_ONLY}
Viral pneumonia and lung opacity are left out: with them the counts would not be the published ones, although
AnomalyCLIP's script takes every folder except `NORMAL` for anomalous. The lung masks of the current release outline
lungs, not anomalies, and are not used. For `v2020` the folder that AnomalyCLIP's script reads is accepted too: NORMAL/
and COVID-19/ or COVID/ with the images directly inside.""",
        citations=('chowdhury2020can', 'rahman2021exploring'),
        homepage='https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database',
        archive='the first release, of 2020, for the published numbers; archive.zip is the current one',
        unpack='unzip archive.zip',
        tree='covid19_radiography/COVID-19 Radiography Database/{COVID-19,NORMAL}/*.png\n'
             'or, for covid19_radiography/current,\n'
             'covid19_radiography/COVID-19_Radiography_Dataset/{COVID,Normal}/images/*.png',
        licence=NOT_STATED,
        layout=None,
        categories={'chest': Category('chest', 0, 1341, 219)},
        domain='medical',
        masks='none',
        markers=('COVID-19 Radiography Database', 'COVID-19_Radiography_Dataset', 'NORMAL', 'Normal'),
        configs={'v2020': 'The first release, with 1,341 normal and 219 COVID-19 images.',
                 'current': 'The current release, with 10,192 normal and 3,616 COVID-19 images.'},
        totals={'v2020': (0, 1341, 219), 'current': (0, 10192, 3616)}),
    'sewer_ml': Entry(
        title='Sewer-ML (validation)',
        summary='Haurum and Moeslund, CVPR 2021: 130,046 validation images of sewer pipes, about half with a defect.',
        description=f"""\
Images from inspections, about 352 x 288 to 768 x 576 pixels: 68,681 normal ones and 61,365 with at least one defect;
the class of object is hard to name. {_LABELS_ONLY} The label is the column `Defect` of SewerML_Val.csv; the kinds of
defects in its other columns are not kept. Date and counter are blurred in the images. The training and test archives
are not needed; next to the table they only slow down every start. Files that are listed but missing stop the
preparation, unlisted ones are a note.""",
        citations=('haurum2021sewer',),
        homepage='https://vap.aau.dk/sewer-ml/',
        archive='valid00.zip, valid01.zip and SewerML_Val.csv (on request; the reply contains the password)',
        unpack='unzip -P PASSWORD -d valid00 valid00.zip && unzip -P PASSWORD -d valid01 valid01.zip',
        tree='sewer_ml/SewerML_Val.csv\n'
             'sewer_ml/{valid00,valid01}/*.png',
        licence='CC BY-NC-SA 4.0',
        layout=None,
        categories={'sewer_pipe': Category('sewer pipe', 0, 68681, 61365)},
        domain='infrastructure',
        masks='none',
        markers=('SewerML_Val.csv',)),
}
