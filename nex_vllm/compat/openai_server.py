def install(settings):
    pass
