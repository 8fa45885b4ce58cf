-- Queues jobs that MongoDB has and that wait for a call or a poll.
-- ARGV: now, streams, depth, counts by (waiting, open, live, bytes), then for each job: stream, tenant, due_at (ms), id.
-- Gives 1; 0 while the index is lost: only the counts were changed then.
local now, depth = tonumber(ARGV[1]), tonumber(ARGV[3])
count(4)
local name, is_open = epoch()
if not name then return 0 end
local room, straight, rung, is_due = {}, {}, false, false
for i = 8, #ARGV, 4 do
  local stream = ARGV[i]
  if not room[stream] then room[stream], straight[stream] = depth - waiting(stream), {} end
  local goes, rings = enqueue(stream, ARGV[i + 1], tonumber(ARGV[i + 2]), now, is_open, room[stream])
  -- Where something was waiting already, everybody knows.
  if rings and (not goes or room[stream] == depth) then
    rung, is_due = true, is_due or tonumber(ARGV[i + 2]) <= now
  end
  if goes then
    room[stream] = room[stream] - 1
    table.insert(straight[stream], ARGV[i + 3])
  end
end
for stream, ids in pairs(straight) do add(stream, ids) end
if rung then ring(not is_due and MAYBE) end
return 1
