module github.com/shiftoverlay/shiftoverlay/tools/conform

go 1.26.0
