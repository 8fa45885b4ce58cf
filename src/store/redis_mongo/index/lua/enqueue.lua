-- Jobs that MongoDB has and that want to go.
-- ARGV: now, lines, depth, counts by (waiting, open, live), then for each job: line, tenant, due_at, id.
local now, depth = tonumber(ARGV[1]), tonumber(ARGV[3])
count(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
local name, is_open = epoch()
if not name then return 0 end
local room, straight, rung = {}, {}, false
for i = 7, #ARGV, 4 do
  local line = ARGV[i]
  if not room[line] then room[line], straight[line] = depth - waiting(line), {} end
  local goes, rings = enqueue(line, ARGV[i + 1], tonumber(ARGV[i + 2]), now, is_open, room[line])
  -- Where something was waiting already, everybody knows.
  rung = rung or rings and (not goes or room[line] == depth)
  if goes then
    room[line] = room[line] - 1
    table.insert(straight[line], ARGV[i + 3])
  end
end
for line, ids in pairs(straight) do add(line, ids) end
if rung then ring() end
return 1
