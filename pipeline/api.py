"""The API's part of the nouns that every app shares."""

from pipeline.rest import Router

router = Router()
urlpatterns = router.urls
