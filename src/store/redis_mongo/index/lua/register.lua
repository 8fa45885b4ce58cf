-- A worker registers its leases in an index that is not open yet, and keeps the leases of jobs that it is settling.
-- ARGV: now, streams, consumer, then for each: stream, entry, id.
-- Gives: epoch, then the new entry of each that had to be added again ('' if it is as it was, or cannot be).
even_when_full()
local consumer = ARGV[3]
local name, is_open = epoch_of_this_run()
if not name then return {''} end
local answer = {name}
for i = 4, #ARGV, 3 do
  local stream, entry, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local jobs, now_in = key_of(stream, 'jobs'), ''
  if #leased_by(stream, {{entry, id}}, consumer) > 0 then
    lease(stream, {entry}, consumer)
  elseif not is_open then
    now_in = add(stream, {id})[1] or ''
    local read
    while now_in ~= '' and read ~= now_in do
      read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', jobs, '>')[1][2][1][1]
      -- Somebody has put it there by hand.
      if read ~= now_in then redis.call('XCLAIM', jobs, GROUP, FREE, '0', read, 'JUSTID') end
    end
    if now_in ~= '' then
      lease(stream, {now_in}, consumer)
      redis.call('HSET', index, id, leased_at(stream, now_in, consumer))
    end
  end
  answer[#answer + 1] = now_in
end
return answer
