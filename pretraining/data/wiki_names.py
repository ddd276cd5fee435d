"""Names in front of a wiki's titles: its name spaces, as the dump tells them, and the wikis of other languages."""

import html
import re
from dataclasses import dataclass
from functools import cached_property

FILES, CATEGORIES = (-2, 6), (14,)  # keys of name spaces whose links show no words: media, files; categories
SITE_INFO_BYTES = 1 << 16
# These names serve in every wiki beside its own.
_CANONICAL = {-2: "media", 6: "file", 14: "category"}
_FILE_ALIASES = ("image",)
# For a piece of a dump, which has no list of its own: names of the larger wikis.
_GUESSED = (
    "Datei Bild Kategorie Fichier Catégorie Archivo Imagen Categoría Immagine Categoria Ficheiro Bestand Afbeelding"
    " Categorie Plik Grafika Kategoria Файл Изображение Категория ファイル 画像 文件 分类 Kategori Fil"
).split()
# Codes of the languages that have a Wikipedia: [[de:Name]] is a link to another language, [[CSI: Miami]] is a title.
LANGUAGES = frozenset(
    """aa ab ace ady af ak als alt am ami an ang ann anp ar arc ary arz as ast atj av avk awa ay az azb ba ban bar
    bat-smg bbc bcl bdr be be-tarask be-x-old bew bg bh bho bi bjn blk bm bn bo bpy br bs btm bug bxr ca cbk-zam
    cdo ce ceb ch cho chr chy ckb co cr crh cs csb cu cv cy da dag de dga din diq dsb dtp dty dv dz ee el eml en
    eo es et eu ext fa fat ff fi fiu-vro fj fo fon fr frp frr fur fy ga gag gan gcr gd gl glk gn gom gor got gpe
    gsw gu guc gur guw gv ha hak haw he hi hif ho hr hsb ht hu hy hyw hz ia iba id ie ig igl ii ik ilo inh io is
    it iu ja jam jbo jv ka kaa kab kbd kbp kcg kg kge ki kj kk kl km kn knc ko koi kr krc ks ksh ku kus kv kw ky
    la lad lb lbe lez lfn lg li lij lld lmo ln lo lrc lt ltg lv lzh mad mai map-bms mdf mg mh mhr mi min mk ml
    mn mni mnw mo mos mr mrj ms mt mus mwl my myv mzn na nah nan nap nds nds-nl ne new ng nia nl nn no nov nqo
    nr nrm nso nup nv ny oc olo om or os pa pag pam pap pcd pcm pdc pfl pi pih pl pms pnb pnt ps pt pwn qu rm
    rmy rn ro roa-rup roa-tara rsk ru rue rup rw sa sah sat sc scn sco sd se sg sgs sh shi shn si simple sk skr
    sl sm smn sn so sq sr srn ss st stq su sv sw syl szl szy ta tay tcy tdd te tet tg th ti tig tk tl tly tn to
    tpi tr trv ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo vro wa war wo wuu xal xh xmf yi yo yue
    za zea zgh zh zh-classical zh-min-nan zh-yue zu""".split()
)
_NAME_SPACE = re.compile(rb'<namespace key="(-?\d+)"[^>]*>([^<]*)</namespace>')
_LANGUAGE = re.compile(rb'<mediawiki[^>]*\bxml:lang="([\w-]+)"')


@dataclass(frozen=True)
class Wiki:
    """What a dump says of itself."""

    language: str = "en"
    namespaces: tuple[tuple[int, str], ...] = ()  # (key, name), names in lower case

    def hides(self, title: str) -> bool:
        """Whether a link to this page shows no words in the text: a file, a category, the page in another language."""
        if title.startswith(":") or ":" not in title:
            return False
        prefix = _normal(title.partition(":")[0])
        return prefix in self._hidden or prefix.replace("_", "-") in LANGUAGES

    def is_article(self, title: str) -> bool:
        """Whether a page's title has no name space in front; for dumps that do not number them."""
        prefix = _normal(title.partition(":")[0])
        return ":" not in title or prefix not in {name for _, name in self.namespaces}

    @cached_property
    def _hidden(self) -> frozenset[str]:
        if not self.namespaces:
            return frozenset((*_CANONICAL.values(), *_FILE_ALIASES, *map(_normal, _GUESSED)))
        own = (name for key, name in self.namespaces if key in FILES + CATEGORIES)
        return frozenset((*own, *_CANONICAL.values(), *_FILE_ALIASES))


NO_WIKI = Wiki()


def site_info(head: bytes) -> Wiki:
    """What stands in front of a dump's first page."""
    head = head.partition(b"<page>")[0]
    language = _LANGUAGE.search(head)
    names = (
        (int(key), _normal(html.unescape(name.decode("utf-8", "ignore")))) for key, name in _NAME_SPACE.findall(head)
    )
    return Wiki(language[1].decode() if language else "en", tuple(names))


def _normal(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).lower()
