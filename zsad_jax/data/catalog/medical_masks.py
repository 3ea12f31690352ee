"""Medical data sets with pixel masks: one category each, test images only."""

from zsad_jax.data.catalog.entry import NOT_STATED, Category, Entry, ImageFolders, Part, converted

_POLYP_ZIP = 'Polyp_DataSet.zip'
_FIGSHARE = 'https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579'
_ANOMALOUS_ONLY = 'Every image is anomalous, so only pixel-level metrics are defined.'
_IMAGES_MASKS = ImageFolders((Part('images', 'polyp', 'masks'),))
_CONVERTED_POLYPS = converted('polyp', masks=True)
_ISIC_MASKS = 'ISBI2016_ISIC_Part1_Test_GroundTruth'
_ISIC_SUFFIXES = ('_Segmentation',)

ENTRIES = {
    'isic2016': Entry(
        title='ISIC 2016',
        summary='Gutman et al., 2016: 379 dermoscopic photographs of skin lesions.',
        description=f"""\
ISBI 2016 challenge, part 1, test: JPEG of about 0.4 to 12 megapixels with pixel masks of 0 and 255, the slowest data
set per image. {_ANOMALOUS_ONLY} Also read: the folder `skin/` that AnomalyCLIP's script expects, with images in
skin/test/<any name except good>/ and the masks under their official name next to test/; and AdaCLIP's isic/test/<name>/
with isic/ground_truth/<name>/.""",
        citations=('gutman2016skin',),
        homepage='https://challenge.isic-archive.com/data/#2016',
        archive='ISBI2016_ISIC_Part1_Test_Data.zip and ISBI2016_ISIC_Part1_Test_GroundTruth.zip',
        unpack='unzip ISBI2016_ISIC_Part1_Test_Data.zip && unzip ISBI2016_ISIC_Part1_Test_GroundTruth.zip',
        tree='isic2016/ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg, ...\n'
             'isic2016/ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png, ...',
        licence='CC0',
        layout=(
            ImageFolders((Part('ISBI2016_ISIC_Part1_Test_Data', 'lesion', _ISIC_MASKS, _ISIC_SUFFIXES),),
                         ('ISBI2016_ISIC_Part1_Training_Data', 'ISBI2016_ISIC_Part1_Training_GroundTruth')),
            ImageFolders((Part('test/*', 'lesion', _ISIC_MASKS, _ISIC_SUFFIXES),), ('train',)),
            ImageFolders((Part('test/*', 'lesion', 'ground_truth/*', (*_ISIC_SUFFIXES, '', '_mask')),), ('train',))),
        categories={'skin': Category('skin', 0, 0, 379)},
        domain='medical',
        markers=('ISBI2016_ISIC_Part1_Test_Data', 'test'),
        tops=('skin', 'isic')),
    'cvc_clinicdb': Entry(
        title='CVC-ClinicDB',
        summary='Bernal et al., 2015: 612 colonoscopy frames with polyps.',
        description=f"""\
CVC-612: frames of 31 videos, 384 x 288 pixels; neighbouring numbers show nearly the same picture. {_ANOMALOUS_ONLY}
The PNG copies of {_POLYP_ZIP} ({_FIGSHARE}),
which AnomalyCLIP uses, are read too, and AdaCLIP's ClinicDB/test/<name>/ with ClinicDB/ground_truth/<name>/.

The TIFF files hold three 8-bit colour samples but declare them greyscale. Pillow refuses such files, and OpenCV returns
their red channel as grey, which is what published numbers of such code are based on. Here they are read as colours and
stored as PNG, which keeps every pixel; a note counts the files, and says so if their three samples are equal.

Masks hold 114 grey values and faint regions far from the polyp. A pixel is anomalous if its grey value exceeds 127
(9.17 % of all pixels; above 0, as in published numbers, 9.30 %).""",
        citations=('bernal2015wm',),
        homepage='https://polyp.grand-challenge.org/CVCClinicDB/',
        archive=f'CVC-ClinicDB.rar (or {_POLYP_ZIP}, whose PNG copies are read too, from {_FIGSHARE})',
        unpack='unrar x CVC-ClinicDB.rar',
        tree='cvc_clinicdb/CVC-ClinicDB/Original/1.tif, ... and cvc_clinicdb/CVC-ClinicDB/Ground Truth/1.tif, ...\n'
             'or cvc_clinicdb/CVC-ClinicDB/images/1.png, ... and cvc_clinicdb/CVC-ClinicDB/masks/1.png, ...',
        licence='research and education, citing Bernal et al. 2015',
        mask_threshold=127,
        layout=(ImageFolders((Part('Original', 'polyp', 'Ground Truth'),)), _IMAGES_MASKS, _CONVERTED_POLYPS),
        categories={'colon': Category('colon', 0, 0, 612)},
        domain='medical',
        markers=('Original', 'images', 'test'),
        tops=('CVC-ClinicDB', 'ClinicDB')),
    'cvc_colondb': Entry(
        title='CVC-ColonDB',
        summary='Bernal et al., 2012: 380 colonoscopy frames with polyps.',
        description=f"""\
Frames of about 574 x 500 pixels. {_ANOMALOUS_ONLY} A model trained on `colon_ad` has seen these images and must not be
evaluated on them. Also read: TestDataset/CVC-ColonDB/ of the polyp segmentation papers, and AdaCLIP's
ColonDB/test/<name>/ with ColonDB/ground_truth/<name>/.""",
        citations=('bernal2012towards',),
        homepage=_FIGSHARE,
        archive=_POLYP_ZIP,
        unpack=f'unzip {_POLYP_ZIP}',
        tree='cvc_colondb/CVC-ColonDB/images/1.png, ... and cvc_colondb/CVC-ColonDB/masks/1.png, ...',
        licence='research and education',
        layout=(_IMAGES_MASKS, _CONVERTED_POLYPS),
        categories={'colon': Category('colon', 0, 0, 380)},
        domain='medical',
        markers=('images', 'test'),
        tops=('CVC-ColonDB', 'TestDataset/CVC-ColonDB', 'ColonDB')),
    'kvasir_seg': Entry(
        title='Kvasir-SEG',
        summary='Jha et al., MMM 2020: 1,000 colonoscopy images with polyps.',
        description=f"""\
JPEG of 332 x 487 to 1,920 x 1,072 pixels, some with a green box or a black corner; the same images are the segmented
part of HyperKvasir, where they are CC BY 4.0. {_ANOMALOUS_ONLY}
Also read: the folder Kvasir/ of AnomalyCLIP's and other scripts. Masks are lossy RGB JPEG with 16 to 18 grey levels: a
pixel is anomalous if its grey value exceeds 127; above 0, as in published numbers, the masks are 1 to 5 % larger.""",
        citations=('jha2020kvasir',),
        homepage='https://datasets.simula.no/kvasir-seg/',
        archive='kvasir-seg.zip',
        unpack='unzip kvasir-seg.zip',
        tree='kvasir_seg/Kvasir-SEG/images/*.jpg and kvasir_seg/Kvasir-SEG/masks/*.jpg',
        licence='research and education',
        mask_threshold=127,
        layout=(_IMAGES_MASKS, _CONVERTED_POLYPS),
        categories={'colon': Category('colon', 0, 0, 1000)},
        domain='medical',
        markers=('images', 'test'),
        tops=('Kvasir-SEG', 'Kvasir')),
    'endotect_seg': Entry(
        title='EndoTect 2020 (segmentation test)',
        summary='Hicks et al., ICPR 2020: 200 colonoscopy images with polyps.',
        description=f"""\
Called Endo in zero-shot papers; JPEG from the same hospital as Kvasir-SEG. {_ANOMALOUS_ONLY} Also read: AdaCLIP's
endo/test/<name>/ with endo/ground_truth/<name>/. Masks are lossy JPEG: a pixel is anomalous if its grey value exceeds
127; published numbers take every pixel above 0. Folders other than `images` and `masks` are ignored with a note;
AnomalyCLIP's script would take them for further defects.""",
        citations=('hicks2021endotect',),
        homepage='https://github.com/simula/icpr-endotect-2020 or https://drive.google.com/file/d/'
                 '1LNpLkv5ZlEUzr_RPN5rdOHaqk0SkZa3m/view (the copy that the AnomalyCLIP authors link)',
        archive='EndoTect_2020_Segmentation_Test_Dataset.zip',
        unpack='unzip EndoTect_2020_Segmentation_Test_Dataset.zip',
        tree='endotect_seg/EndoTect_2020_Segmentation_Test_Dataset/images/*.jpg\n'
             'endotect_seg/EndoTect_2020_Segmentation_Test_Dataset/masks/*.jpg',
        licence=NOT_STATED,
        mask_threshold=127,
        layout=(_IMAGES_MASKS, _CONVERTED_POLYPS),
        categories={'colon': Category('colon', 0, 0, 200)},
        domain='medical',
        markers=('images', 'test'),
        tops=('EndoTect_2020_Segmentation_Test_Dataset', 'endo')),
    'tn3k': Entry(
        title='TN3K',
        summary='Gong et al., 2021 and 2023: 614 ultrasound test images of thyroid nodules.',
        description=f"""\
JPEG of 255 x 261 to 1,399 x 772 pixels with text and rulers burned in; the training part is not used.
{_ANOMALOUS_ONLY} Its code is MIT, the images have no stated licence. Also read: AdaCLIP's tn3k/test/<name>/ with
tn3k/ground_truth/<name>/. Masks are lossy JPEG with 18 to 29 grey levels: a pixel is anomalous if its grey value
exceeds 127 (11.87 % of all pixels; above 0, as in published numbers, 12.63 %).""",
        citations=('gong2021multi', 'gong2023thyroid'),
        homepage='https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation',
        archive='the rar parts of its folder picture/, or tn3k.zip by its Drive link',
        unpack='unrar x FIRST_PART.rar, or unzip tn3k.zip',
        tree='tn3k/tn3k/test-image/0000.jpg, ... and tn3k/tn3k/test-mask/0000.jpg, ...',
        licence=NOT_STATED,
        mask_threshold=127,
        layout=(ImageFolders((Part('test-image', 'nodule', 'test-mask'),), ('trainval-image', 'trainval-mask')),
                converted('nodule', masks=True)),
        categories={'thyroid': Category('thyroid', 0, 0, 614)},
        domain='medical',
        markers=('test-image', 'test'),
        tops=('tn3k',)),
    'colon_ad': Entry(
        title='ColonDB with normal colon images',
        summary='The medical fine-tuning set of AnomalyCLIP (arXiv 2310.18961), appendix B.',
        description="""\
The 380 images of CVC-ColonDB, anomalous and with masks, and the normal images of EndoTect 2020's classification test,
163 in the paper. Prompts trained on it are evaluated on other medical sets, which have either masks or normal images
but not both. All images are in the split `test`, since the protocol trains on the test split of every auxiliary data
set; there is no split `train`, which elsewhere means normal images only.

Do not evaluate on these with a model trained on this set: the set itself and `cvc_colondb`, which are both refused, and
EndoTect's classification images.

`normal/` holds either images that you consider normal, or one folder per class of the EndoTect classification test. The
paper does not say which classes it took; here the configuration does:

| configuration | name for `load` | classes |
| --- | --- | --- |
| `colon` (default) | `colon_ad` | bbps-2-3, cecum (or normal-cecum), ileum, retroflex-rectum |
| `tract` | `colon_ad/tract` | the same and pylorus, z-line (or normal-pylorus, normal-z-line), retroflex-stomach |

Any number of normal images will do; a note gives their number if it is not 163.""",
        citations=('zhou2024anomalyclip', 'bernal2012towards', 'hicks2021endotect'),
        homepage=f'{_FIGSHARE} and https://github.com/simula/icpr-endotect-2020',
        archive=f'CVC-ColonDB ({_POLYP_ZIP}) and the classification test images of EndoTect 2020',
        unpack=f'unzip {_POLYP_ZIP}, and put the normal EndoTect images into normal/, preferably by class',
        tree='colon_ad/CVC-ColonDB/images/1.png, ... and colon_ad/CVC-ColonDB/masks/1.png, ...\n'
             'colon_ad/normal/{cecum,ileum,bbps-2-3,retroflex-rectum}/*.jpg or colon_ad/normal/*.jpg',
        licence='that of its parts: research and education',
        layout=None,
        categories={'colon': Category('colon', 0, 163, 380)},
        domain='medical',
        markers=('CVC-ColonDB', 'normal'),
        configs={'colon': 'Normal images are of the colon alone.',
                 'tract': 'Normal images are of the colon and of the upper tract.'},
        contains=('cvc_colondb',)),
}
