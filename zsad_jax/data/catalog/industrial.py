"""Industrial data sets."""

from zsad_jax.data.catalog.entry import NOT_STATED, Category, Entry, MvtecFolders

ENTRIES = {
    'mvtec_ad': Entry(
        title='MVTec AD',
        summary='Bergmann et al., CVPR 2019: 15 categories, 3,629 training and 1,725 test images.',
        description="""\
Photographs of 5 textures and 10 objects, 5,354 images of 700 to 1,024 pixels per side, with pixel masks: 3,629 normal
training images; 467 normal and 1,258 anomalous test images with 73 kinds of defects. `grid`, `screw` and `zipper` are
grey. Zero-shot papers train on the test split of one data set and evaluate on others, so `test` is a split like any
other. Masks hold 0 and 255 only.""",
        citations=('bergmann2019mvtec', 'bergmann2021mvtec'),
        homepage='https://www.mvtec.com/company/research/datasets/mvtec-ad',
        archive='mvtec_anomaly_detection.tar.xz',
        sha256='cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d',
        unpack='tar -xJf mvtec_anomaly_detection.tar.xz',
        tree='mvtec_ad/<category>/{train/good,test/good,test/<defect>}/*.png\n'
             'mvtec_ad/<category>/ground_truth/<defect>/*_mask.png',
        licence='CC BY-NC-SA 4.0',
        layout=MvtecFolders(),
        categories={
            'bottle': Category('bottle', 209, 20, 63),
            'cable': Category('cable', 224, 58, 92),
            'capsule': Category('capsule', 219, 23, 109),
            'carpet': Category('carpet', 280, 28, 89, texture=True),
            'grid': Category('grid', 264, 21, 57, texture=True),
            'hazelnut': Category('hazelnut', 391, 40, 70),
            'leather': Category('leather', 245, 32, 92, texture=True),
            'metal_nut': Category('metal nut', 220, 22, 93),
            'pill': Category('pill', 267, 26, 141),
            'screw': Category('screw', 320, 41, 119),
            'tile': Category('tile', 230, 33, 84, texture=True),
            'toothbrush': Category('toothbrush', 60, 12, 30),
            'transistor': Category('transistor', 213, 60, 40),
            'wood': Category('wood', 247, 19, 60, texture=True),
            'zipper': Category('zipper', 240, 32, 119),
        }),
    'visa': Entry(
        title='VisA',
        summary="Zou et al., ECCV 2022: 12 objects, split by the archive's own split_csv/1cls.csv.",
        description="""\
10,821 photographs of 12 kinds of objects, JPEG of about 1.5 megapixels, with pixel masks: 8,659 normal training images;
962 normal and 1,200 anomalous test images. The split is the archive's split_csv/1cls.csv, which zero-shot papers use;
the raw layout is read as it is. Masks hold class indices 1, 2, ... (the kind of defect), so they look black in
viewers. The archive names several defects per image, so the defect type is `anomaly` throughout. File stems repeat
between normal and anomalous images; ids also hold the defect type.""",
        citations=('zou2022spot',),
        homepage='https://github.com/amazon-science/spot-diff',
        archive='VisA_20220922.tar',
        sha256='2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362',
        unpack='tar -xf VisA_20220922.tar',
        tree='visa/split_csv/1cls.csv\n'
             'visa/<object>/Data/Images/{Normal,Anomaly}/*.JPG\n'
             'visa/<object>/Data/Masks/Anomaly/*.png',
        licence='CC BY 4.0',
        layout=None,
        categories={
            'candle': Category('candle', 900, 100, 100),
            'capsules': Category('capsules', 542, 60, 100),
            'cashew': Category('cashew', 450, 50, 100),
            'chewinggum': Category('chewing gum', 453, 50, 100),
            'fryum': Category('fryum', 450, 50, 100),
            'macaroni1': Category('macaroni', 900, 100, 100),
            'macaroni2': Category('macaroni', 900, 100, 100),
            'pcb1': Category('printed circuit board', 904, 100, 100),
            'pcb2': Category('printed circuit board', 901, 100, 100),
            'pcb3': Category('printed circuit board', 905, 101, 100),
            'pcb4': Category('printed circuit board', 904, 101, 100),
            'pipe_fryum': Category('pipe fryum', 450, 50, 100),
        }),
    'mpdd': Entry(
        title='MPDD',
        summary='Jezek et al., ICUMT 2021: 6 categories of painted metal parts, 888 training and 458 test images.',
        description="""\
Photographs of painted metal parts from a production line, often several per image, in varied positions and in front of
varied backgrounds. PNG of 1,024 x 1,024 pixels with pixel masks: 888 normal training images; 176 normal and 282
anomalous test images. The counts per category are the commonly cited ones; the sums are those of the papers. Large
downloads come as several archives, and categories were lost that way: missing ones are named during preparation.""",
        citations=('jezek2021deep',),
        homepage='https://github.com/stepanje/MPDD',
        archive='the MPDD folder (linked there)',
        unpack="unzip '*.zip' (the download may come in parts: all six categories must be there)",
        tree='mpdd/<category>/{train/good,test/good,test/<defect>}/*.png\n'
             'mpdd/<category>/ground_truth/<defect>/*_mask.png',
        licence='CC BY-NC-SA 4.0',
        layout=MvtecFolders(),
        tops=('MPDD',),
        categories={
            'bracket_black': Category('black metal bracket', 289, 32, 47),
            'bracket_brown': Category('brown metal bracket', 185, 26, 51),
            'bracket_white': Category('white metal bracket', 110, 30, 30),
            'connector': Category('connector', 128, 30, 14),
            'metal_plate': Category('metal plate', 54, 26, 71),
            'tubes': Category('metal tubes', 122, 32, 69),
        }),
    'btad': Entry(
        title='BTAD',
        summary='Mishra et al., ISIE 2021: 3 unnamed products, 1,799 training and 741 test images.',
        description="""\
beanTech Anomaly Detection: photographs of the products `01`, `02` and `03` with pixel masks: 1,799 normal training
images; 451 normal and 290 anomalous test images. The authors' README states CC BY-SA 4.0; other libraries state
BY-NC-SA. Normal images are in `ok` (or `good`, in renamed copies), anomalous ones in `ko`; a stem may occur in both.
Images and masks are BMP or PNG, a mask not always of the same format as its image; BMP images are stored as PNG, which
keeps every pixel. Only the sums are certain: the usual counts give 399 training images to `02` and 1,000 to `03`, the
authors' README the reverse. The products have no names, so prompts call them "object".""",
        citations=('mishra2021vtadl',),
        homepage='http://avires.dimi.uniud.it/papers/btad/btad.zip',
        archive='btad.zip',
        sha256='461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a',
        unpack='unzip btad.zip',
        tree='btad/BTech_Dataset_transformed/{01,02,03}/{train/ok,test/ok,test/ko}/*.{bmp,png}\n'
             'btad/BTech_Dataset_transformed/{01,02,03}/ground_truth/ko/*.{bmp,png}',
        licence='CC BY-SA 4.0',
        layout=MvtecFolders(normal=('ok', 'good')),
        tops=('BTech_Dataset_transformed',),
        totals={'': (1799, 451, 290)},  # the authors contradict the usual counts of 02 and 03
        categories={
            '01': Category('object', 400, 21, 49),
            '02': Category('object', 399, 30, 200),
            '03': Category('object', 1000, 400, 41),
        }),
    'kolektor_sdd': Entry(
        title='KolektorSDD',
        summary='Tabernik et al., J. Intell. Manuf. 2020: 399 commutator surfaces, whole or cut into tiles.',
        description="""\
Kolektor Surface-Defect Dataset (not KolektorSDD2): the surfaces of 50 electrical commutators, photographed in 8 parts
each. 399 grey strips, 500 pixels wide and 1,240 to 1,270 high, 52 of them with a thin crack, with pixel masks
PartN_label.bmp next to every PartN.jpg; all zero means normal.

Papers cut the strips across, and so do the configurations; tiles are stored as grey PNG named kosNN_PartN_<tile>:

| configuration | tiles per strip | train | test normal | test anomalous | used by |
| --- | --- | --- | --- | --- | --- |
| `halves` (default) | 2, cut at h // 2 | 543 | 181 | 74 | AnomalyCLIP's paper |
| `thirds` | 3, cut at h // 3 and 2h // 3 | 857 | 286 | 54 | DRA, AdaCLIP |
| `full` | 1 | 260 | 87 | 52 | the same split rule, no paper |

A tile is anomalous if its part of the mask has a pixel. The split is not the papers' own: all anomalous tiles are test,
and a random quarter of the normal ones, by the rule of scikit-learn's train_test_split(test_size=0.25,
random_state=42), here over the sorted names. The papers' scripts applied it to names in the order of the file system,
so which normal tiles they tested cannot be known. The counts of `halves` are those that AnomalyCLIP reports; a crack on
the cut makes two anomalous tiles, and other copies of the masks gave 67 to 78.

Tiles that are cut already are read too, in MVTec AD's layout and with the split they have; the number at the end of
their names must fit the configuration.""",
        citations=('tabernik2020segmentation',),
        homepage='https://www.vicos.si/resources/kolektorsdd/',
        archive='KolektorSDD.zip',
        sha256='65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc',
        unpack='unzip KolektorSDD.zip',
        tree='kolektor_sdd/kos01/Part0.jpg\n'
             'kolektor_sdd/kos01/Part0_label.bmp\n'
             '... to kos50; or tiles that are cut already:\n'
             'kolektor_sdd/electrical commutators/{train/good,test/good,test/defect,ground_truth/defect}/*.png',
        licence='CC BY-NC-SA 4.0',
        layout=None,
        markers=(*(f'kos{i:02}' for i in range(1, 51)), 'electrical commutators', 'electrical_commutators',
                 'ground_truth'),
        tops=('KolektorSDD', 'SDD'),
        configs={'halves': 'Every strip is cut across into two tiles.',
                 'thirds': 'Every strip is cut across into three tiles.', 'full': 'Whole strips.'},
        # halves and thirds as used in papers, full by the same rule: a quarter of the normal images is test.
        totals={'halves': (543, 181, 74), 'thirds': (857, 286, 54), 'full': (260, 87, 52)},
        categories={'electrical_commutators': Category('electrical commutator', 543, 181, 74)}),
    'dagm2007': Entry(
        title='DAGM 2007',
        summary='Wieler and Hahn, 2007: 10 drawn textures, 7,004 training and 8,050 test images, masks as ellipses.',
        description="""\
Ten textures drawn by programs, each with one kind of defect, made for a competition of the German pattern recognition
society (https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection). 8-bit grey
PNG of 512 x 512 pixels: 7,004 normal training images; 6,996 normal and 1,054 anomalous test images, 575 or 1,150 per
class. `Test` is the split `test`; of `Train` only the normal images are used, as the split `train`. An image is
anomalous if `Label/` holds <stem>_label.PNG; a mask that `Labels.txt` names and that is missing is an error, since its
image would pass for a normal one. A copy in MVTec AD's layout is read too; such copies hold another selection of
images, so their counts differ from the published ones.

The masks are weak: one filled ellipse, drawn generously around the defect. Pixel metrics reward blobs, and AUPRO counts
one region per image. Prompts call every class "texture".""",
        citations=('wieler2007weakly',),
        homepage='https://www.kaggle.com/datasets/mhskjelvareid/dagm-2007-competition-dataset-optical-inspection',
        archive='archive.zip',
        unpack='unzip archive.zip',
        tree='dagm2007/DAGM_KaggleUpload/Class<n>/{Train,Test}/*.PNG\n'
             'dagm2007/DAGM_KaggleUpload/Class<n>/{Train,Test}/Label/*_label.PNG',
        licence=NOT_STATED,
        layout=None,
        masks='weak',
        tops=('DAGM_KaggleUpload', 'DAGM2007', 'DAGM_anomaly_detection'),
        categories={
            'Class1': Category('texture', 496, 504, 71, texture=True),
            'Class10': Category('texture', 1000, 1000, 150, texture=True),
            'Class2': Category('texture', 509, 491, 84, texture=True),
            'Class3': Category('texture', 509, 491, 84, texture=True),
            'Class4': Category('texture', 493, 507, 68, texture=True),
            'Class5': Category('texture', 505, 495, 80, texture=True),
            'Class6': Category('texture', 492, 508, 67, texture=True),
            'Class7': Category('texture', 1000, 1000, 150, texture=True),
            'Class8': Category('texture', 1000, 1000, 150, texture=True),
            'Class9': Category('texture', 1000, 1000, 150, texture=True),
        }),
    'dtd_synthetic': Entry(
        title='DTD-Synthetic',
        summary='Aota et al., WACV 2023: 12 textures with drawn defects, 1,304 test images.',
        description="""\
Squares cut at random positions and orientations from 12 photographs of the Describable Textures Dataset, with defects
drawn onto them and pixel masks: 357 normal and 947 anomalous test images, and normal training images, a few hundred
pixels per side. Only the sums of the test images are published, so only they are checked. Some downloads are laid out
differently; preparation then stops and lists what each folder holds. Prompts use the texture's word: `Woven_001` is
"woven texture".""",
        citations=('aota2023zero', 'cimpoi2014describing'),
        homepage='https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1',
        archive='the DTD-Synthetic folder (Google Drive)',
        unpack="unzip '*.zip'",
        tree='dtd_synthetic/<texture>/{train/good,test/good,test/<defect>}/*\n'
             'dtd_synthetic/<texture>/ground_truth/<defect>/*_mask.png',
        licence=NOT_STATED,
        layout=MvtecFolders(),
        tops=('DTD-Synthetic',),
        totals={'': (None, 357, 947)},
        categories={
            name: Category(f'{name.split("_")[0].lower()} texture', None, None, None, texture=True)
            for name in ('Blotchy_099', 'Fibrous_183', 'Marbled_078', 'Matted_069', 'Mesh_114', 'Perforated_037',
                         'Stratified_154', 'Woven_001', 'Woven_068', 'Woven_104', 'Woven_125', 'Woven_127')}),
}
