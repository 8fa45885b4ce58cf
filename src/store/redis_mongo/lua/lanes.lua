-- What waits in which lane. ARGV: now, lines.
-- Gives: width, what each priority has paid for its turns, how many jobs of each line workers hold, then each piece and its jobs. Nothing
-- while that is not known.
local lines = tonumber(ARGV[2])
if not epoch() then return {} end
local found = redis.call('HMGET', state, 'counted', 'width', 'spent0', 'spent1', 'spent2')
if found[1] ~= '1' then return {} end
local answer = {found[2] or '1', found[3] or '-1', found[4] or '-1', found[5] or '-1'}
for line = 0, 5 do
  local _, _, held = 0, 0, 0
  if line < lines then _, _, held = waiting(line) end
  answer[#answer + 1] = tostring(held)
end
for _, text in ipairs(redis.call('HGETALL', base .. ':lanes')) do answer[#answer + 1] = text end
return answer
